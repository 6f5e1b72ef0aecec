"""From one table to several virtual sites: partition, split, tokens, frozen-prefix caches, privacy plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from fedethos.aggregation import phases, trained_in
from fedethos.client.examples import Examples, HiddenInputs, Inputs, TokenInputs
from fedethos.client.model import NodeModel, training_device
from fedethos.client.node import Node, SourceOf, clipping_engine
from fedethos.data.bound import at_most
from fedethos.data.contract import apply_contract
from fedethos.data.readers import read_table
from fedethos.data.records import Records
from fedethos.data.split import split_records
from fedethos.data.tokens import tokenize
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import SplitName
from fedethos.models import prefix
from fedethos.models.adapter import attach_lora
from fedethos.models.assets import resolve
from fedethos.models.base import load_base
from fedethos.models.core import put_core_between
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.ledger_plan import CommittedPlan
from fedethos.privacy.planner import allotments
from fedethos.privacy.randomness import SecureSource, SeededSource
from fedethos.privacy.self_check import check_engine, synthetic_classification
from fedethos.progress import Observer
from fedethos.server.site import Site
from fedethos.simulations.partition import check_site_labels, partition
from fedethos.site import Caps
from fedethos.strategies.averaging import capped_shares

SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
_ROUND_SIZE_TO = 100  # a simulated site declares its size rounded up, so that the printed epsilon cannot tell the exact one


@dataclass(frozen=True)
class Federation:
    """Virtual sites that share one model."""

    model: NodeModel
    sites: Mapping[int, Site]
    nodes: Mapping[int, Node]


def site_records(job: Job, base: Path) -> dict[str, dict[SplitName, Records]]:
    """Each virtual site's records by split. ``base`` is the folder that relative paths in the job start from."""
    plan = job.simulation.partition
    by_column = plan.by if plan.kind == "by-column" else None
    records = apply_contract(read_table(job.data, base=base), job.data, keep=by_column)
    parts = partition(
        records,
        plan,
        sites=job.simulation.sites,
        seed=job.simulation.seed,
        label_values=job.data.label.values,
        categories=job.data.sensitive,
    )
    names = _site_names(job, len(parts))
    by_site = {}
    for name, rows in zip(names, parts, strict=True):
        salt = job.data.split_salt or f"{job.simulation.seed}/{name}"
        splits = split_records(records.take(rows), job.data.split, salt=salt, limit=job.data.limit)
        check_site_labels(splits["train"], name, job.data.label.values)
        bounded = job.privacy.mode != "none" and job.unit == "person"
        by_site[name] = {split: at_most(part, job.rows_per_unit) for split, part in splits.items()} if bounded else splits
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
def open_federation(job: Job, *, base: Path, scratch: Path, ledger: Path, observer: Observer) -> Iterator[Federation]:
    """Load the model once, commit every site's plan in ``ledger``, read the records, cache what is frozen.

    Caches are deleted on leaving; the ledger stays.
    """
    observer.stage("Loading the base model")
    where = resolve(job.model.path, base=base)
    loaded = load_base(where, num_labels=len(job.data.label.values), sha256=job.model.sha256, seed=job.simulation.seed)
    _check_length(job, loaded.model.config.max_position_embeddings)
    device = training_device()
    adapted = attach_lora(loaded.model, job.lora, seed=job.simulation.seed, freeze_a=job.aggregation == "ffa")
    if job.aggregation == "fedsb":
        put_core_between(adapted, seed=job.simulation.seed)
    adapted.to(device)

    observer.stage("Reading and splitting the records")
    by_site = site_records(job, base)
    sizes = {name: declared_size(job, name, splits["train"].units) for name, splits in by_site.items()}
    sites = approved_sites(job, sizes)

    with ExitStack() as caches:
        committed = _committed_plans(job, sizes, ledger, caches)
        cached = caches_prefix(job, adapted)
        model = NodeModel(adapted, prefix.tail(adapted) if cached else adapted, loaded.sha256)
        if job.privacy.mode != "none":
            observer.stage("Checking the clipping engine against plain gradients")
            synthetic = synthetic_classification(loaded.model.config.vocab_size, len(job.data.label.values))
            for names in phases(job.aggregation, model.exchanged_names):
                model.train_only(names)
                check_engine(partial(clipping_engine, job), adapted, model.parameters, synthetic)
        model.train_only(trained_in(job.aggregation, 1, model.exchanged_names))
        nodes = {}
        for node_id, site in sites.items():
            if cached:
                observer.stage(f"Caching the frozen layers, site {node_id} of {len(sites)}")
            examples = {
                split: Examples.of(records, job.unit, _inputs(job, adapted, loaded.tokenizer, records, scratch, caches, cached=cached))
                for split, records in by_site[site.name].items()
            }
            nodes[node_id] = Node(
                job=job,
                model=model,
                examples=examples,
                declared_size=site.declared_size,
                ledger=committed.get(site.name),
                source_of=_sources(job, site.name),
                rank=job.federation.sites[site.name].rank if site.name in job.federation.sites else None,
            )
        yield Federation(model, sites, nodes)


def _check_length(job: Job, longest: int) -> None:
    if job.model.max_length > longest:
        raise FedethosError(
            "MODEL-421",
            f"model.max_length is {job.model.max_length}, and the base model reads at most {longest} tokens.",
            where="model.max_length",
            fix="Lower it.",
        )


def _committed_plans(job: Job, sizes: Mapping[str, int], path: Path, resources: ExitStack) -> dict[str, CommittedPlan]:
    """Each site's plan for the whole job, charged in full before training; empty under ``privacy.mode: none``."""
    if job.privacy.mode == "none" or job.privacy.epsilon is None:
        return {}
    ledger = resources.enter_context(Ledger(path))
    caps = Caps(
        lifetime_epsilon=job.privacy.epsilon,
        per_job_epsilon=job.privacy.epsilon,
        delta=job.privacy.delta,
        rounds=job.federation.rounds,
    )
    committed = {}
    for name, size in sizes.items():
        ledger.open_account(name, caps=caps, unit=job.unit, adjacency=job.privacy.adjacency, simulated=True)
        committed[name] = ledger.commit(
            SpendingPlan(
                account=name,
                job_sha256=job.sha256,
                run=job.name,
                unit=job.unit,
                adjacency=job.privacy.adjacency,
                epsilon=job.privacy.epsilon,
                delta=job.privacy.delta,
                allotments=allotments(job, declared_size=size, rows_per_unit=job.rows_per_unit),
                seeded=job.privacy.secure_rng is not True,
            )
        )
    return committed


def caches_prefix(job: Job, model: PeftModel) -> bool:
    """Whether layers below the first adapter are computed once a record (``training.cache_frozen_prefix``)."""
    wish = job.training.cache_frozen_prefix
    if wish == "off":
        return False
    possible = prefix.tail_start(model) > 0
    if wish == "on" and not possible:
        raise FedethosError(
            "MODEL-420",
            "training.cache_frozen_prefix is on, but no whole layer lies below the first adapter.",
            where="lora.layers_to_transform",
            fix="Adapt upper layers only, or set training.cache_frozen_prefix to auto.",
        )
    return possible


def _inputs(
    job: Job,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    scratch: Path,
    caches: ExitStack,
    *,
    cached: bool,
) -> Inputs:
    table = tokenize(records.text, tokenizer, job.model.max_length)
    if not cached:
        return TokenInputs(table)
    return HiddenInputs(caches.enter_context(prefix.build_cache(model, table, folder=scratch, dtype=np.dtype(job.training.cache_dtype))))


def _sources(job: Job, site: str) -> SourceOf:
    if job.privacy.secure_rng is True:
        return lambda *key: SecureSource()
    return lambda *key: SeededSource(job.simulation.seed, site, *key)
