"""From one table to several virtual sites: partition, split, inputs, privacy plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedethos.client.model import NodeModel
from fedethos.client.node import Node
from fedethos.client.personal import PersonalAdapter
from fedethos.client.site_records import Splits, checked_task, make_examples, random_sources, split_site
from fedethos.client.site_records import read_records as read_site_records
from fedethos.client.task import Task
from fedethos.data.counterfactual import Swaps
from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import SplitName
from fedethos.progress import Observer
from fedethos.server.site import Site
from fedethos.simulations.accounts import committed_plans
from fedethos.simulations.partition import check_site_labels, partition
from fedethos.simulations.planted import with_canaries
from fedethos.strategies.averaging import capped_shares

SiteRecords = dict[str, Splits]
Spoil = Callable[[SiteRecords], SiteRecords]

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_ROUND_SIZE_TO = 100  # a simulated site declares its size rounded up, so that the printed epsilon cannot tell the exact one
_MOST_DRAWS = 1_000


@dataclass(frozen=True)
class Federation:
    """Virtual sites that share one model. Every site is in ``sites``; ``nodes`` may be fewer."""

    task: Task
    sites: Mapping[int, Site]
    nodes: Mapping[int, Node]

    @property
    def model(self) -> NodeModel:
        return self.task.model


def read_records(job: Job, base: Path, swaps: Swaps | None = None) -> Records:
    """All records that ``job`` names. ``base`` is the folder that relative paths in the job start from.

    ``swaps``: attributes whose counterfactual inputs are wanted; default: those that ``fairness.augment`` needs.
    """
    return read_site_records(job, base, swaps, keep=_kept_column(job))


def same_records(job: Job, other: Job) -> bool:
    """Whether ``read_records`` gives the same for both, from the same folder."""
    return _read_from(job) == _read_from(other)


def _read_from(job: Job) -> tuple[object, ...]:
    terms = job.fairness.identity_terms if job.fairness.augment == "counterfactual" else None
    return job.data, _kept_column(job), job.fairness.augment, terms, job.scenarios


def _kept_column(job: Job) -> str | None:
    plan = job.simulation.partition
    return plan.by if plan.kind == "by-column" else None


def site_records(job: Job, base: Path, records: Records | None = None) -> SiteRecords:
    """Each virtual site's records by split. ``records``: what ``read_records`` gave for this job, or for one with other seeds.

    Under ``simulation.partition.redraw`` the first draw of at most 1,000 that gives every site each label. Raises DATA-131, DATA-135 or
    DATA-136 otherwise.
    """
    records = records or read_records(job, base)
    last = _MOST_DRAWS - 1 if job.simulation.partition.redraw else 0
    for draw in range(last):
        try:
            return _drawn(job, records, draw)
        except FedethosError as error:
            if error.code not in ("DATA-131", "DATA-135", "DATA-136"):
                raise
    return _drawn(job, records, last)


def _drawn(job: Job, records: Records, draw: int) -> SiteRecords:
    parts = partition(
        records,
        job.simulation.partition,
        sites=job.simulation.sites,
        seed=job.simulation.seed,
        label_values=job.data.label.values,
        categories=job.data.sensitive,
        draw=draw,
    )
    names = _site_names(job, len(parts))
    by_site = {}
    for name, rows in zip(names, parts, strict=True):
        salt = job.data.split_salt or f"{job.simulation.seed}/{name}"
        by_site[name] = split_site(job, records.take(rows), salt)
        check_site_labels(by_site[name]["train"], name, job.data.label.values)
    return by_site


def _site_names(job: Job, count: int) -> list[str]:
    if job.federation.sites:
        if len(job.federation.sites) != count:
            raise FedethosError(
                "CFG-230",
                f"The job names {len(job.federation.sites)} sites and simulates {count}.",
                where="federation.sites",
                fix="Name as many sites as simulation.sites, or leave federation.sites empty.",
            )
        return sorted(job.federation.sites)
    return [f"site-{number:0{len(str(count))}d}" for number in range(1, count + 1)]


def declared_size(job: Job, name: str, train_units: int) -> int:
    """The public size of a site: from the job, else training units rounded up to 100."""
    planned = job.federation.sites.get(name)
    if planned is not None and planned.declared_size is not None:
        return planned.declared_size
    return -(-train_units // _ROUND_SIZE_TO) * _ROUND_SIZE_TO


def approved_sites(job: Job, sizes: Mapping[str, int]) -> dict[int, Site]:
    """Sites by node id. Weights are the job's, else the declared sizes; capped by ``robustness.weight_cap``."""
    planned = job.federation.sites
    weights = {name: planned[name].weight if name in planned else float(size) for name, size in sizes.items()}
    shares = capped_shares(weights, job.robustness.weight_cap)
    return {
        node_id: Site(name=name, node_id=node_id, share=shares[name], declared_size=sizes[name])
        for node_id, name in enumerate(sorted(sizes), start=1)
    }


@contextmanager
def open_federation(
    job: Job,
    *,
    base: Path,
    scratch: Path,
    ledger: Path,
    observer: Observer,
    run: str = "run",
    only: int | None = None,
    personal: Path | None = None,
    records: Records | None = None,
    spoil: Spoil = lambda records: records,
) -> Iterator[Federation]:
    """Prepare the task once, commit every site's plan in ``ledger``, read the records (or take ``records``), make their inputs.

    A plan is committed as soon as the site's size is known: before the records are opened if the job declares all sizes, else after
    they were dealt to the sites. Whatever can be refused without them is refused first, so that it costs nothing.
    Temporary files are deleted on leaving; the ledger stays.

    Parameters
    ----------
    run : str
        Names this run in the ledger.
    only : int, optional
        Open the node of this site alone.
    personal : Path, optional
        Where sites of a job with ``training.personal`` keep their own adapters, each in a folder named by its node id; default: among
        the temporary files.
    spoil : callable
        What attackers do to their records (``simulations/attacks.py``).

    Raises
    ------
    FedethosError
        PRIV-310 when a plan is over a site's cap; no record was turned into a model input.
    """
    with ExitStack() as resources:
        task = checked_task(job, base=base, scratch=scratch, resources=resources, say=observer.stage)
        known = _declared_sizes(job)
        committed = committed_plans(job, known, ledger, run, resources) if known else {}
        observer.stage("Reading and splitting the records")
        by_site = spoil(with_canaries(job, site_records(job, base, records)))
        sizes = known or {name: declared_size(job, name, splits["train"].units) for name, splits in by_site.items()}
        if not known:
            committed = committed_plans(job, sizes, ledger, run, resources)
        sites = approved_sites(job, sizes)

        nodes = {}
        for node_id, site in sites.items() if only is None else [(only, sites[only])]:
            observer.stage(f"Preparing the records, site {node_id} of {len(sites)}")
            nodes[node_id] = Node(
                job=job,
                model=task.model,
                examples=make_examples(job, task, by_site[site.name]),
                declared_size=site.declared_size,
                ledger=committed.get(site.name),
                source_of=random_sources(job, site.name, secure=job.privacy.secure_rng is True),
                personal=PersonalAdapter((personal or scratch / "personal") / str(node_id)) if job.training.personal else None,
                rank=job.federation.sites[site.name].rank if site.name in job.federation.sites else None,
                anchor=task.anchor,
            )
        yield Federation(task, sites, nodes)


def _declared_sizes(job: Job) -> dict[str, int]:
    """The sizes that the job declares; empty unless it does so for every site. CFG-230 as early as the number of sites is known."""
    if job.simulation.partition.kind != "by-column":
        _site_names(job, job.simulation.sites)
    sizes = {name: plan.declared_size for name, plan in sorted(job.federation.sites.items()) if plan.declared_size is not None}
    return sizes if len(sizes) == len(job.federation.sites) else {}
