"""One site's table to what its node trains and counts on: records, splits, model inputs. The same for a real site and a virtual one.

Next on the path: ``client/site_node.py`` (a real site), ``simulations/virtual_sites.py`` (several in one process).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from fedethos.aggregation import phases
from fedethos.client.examples import Examples
from fedethos.client.node import SourceOf, clipping_engine, clipping_rule
from fedethos.client.registry import prepare_task
from fedethos.client.task import Task
from fedethos.data.bound import at_most
from fedethos.data.contract import apply_contract
from fedethos.data.counterfactual import Swaps, read_swaps, with_copies
from fedethos.data.readers import read_table
from fedethos.data.records import Records
from fedethos.data.split import split_records
from fedethos.job import Job
from fedethos.messages import SplitName
from fedethos.privacy.randomness import SecureSource, SeededSource
from fedethos.privacy.self_check import check_engine

Splits = dict[SplitName, Records]


def read_records(job: Job, base: Path, swaps: Swaps | None = None, *, keep: str | None = None) -> Records:
    """All records that ``job`` names.

    Parameters
    ----------
    base : Path
        The folder that relative paths in the job start from.
    swaps : Swaps, optional
        Attributes whose counterfactual inputs are wanted; default: those that ``fairness.augment`` needs.
    keep : str, optional
        A column whose values are kept as they are.
    """
    if swaps is None and job.fairness.augment == "counterfactual":
        swaps = read_swaps(job.data, job.fairness.identity_terms, base)
    filters = {one.table: one.filter for one in job.scenarios}
    return apply_contract(read_table(job.data, base=base), job.data, keep=keep, swaps=swaps, filters=filters)


def split_site(job: Job, records: Records, salt: str) -> Splits:
    """A site's records by split, at most ``job.rows_per_unit`` of each person, with the copies that the job trains on. DATA-131."""
    splits = split_records(records, job.data.split, salt=salt, limit=job.data.limit)
    if job.privacy.mode != "none" and job.unit == "person":
        splits = {split: at_most(part, job.rows_per_unit) for split, part in splits.items()}
    return {**splits, "train": with_copies(splits["train"])} if job.fairness.augment == "counterfactual" else splits


def make_examples(job: Job, task: Task, splits: Splits) -> dict[SplitName, Examples]:
    """Model inputs, labels, groups and units of each split."""
    return {split: Examples.of(records, job, task.inputs(records)) for split, records in splits.items()}


def random_sources(job: Job, site: str, *, secure: bool) -> SourceOf:
    """Where a site's random numbers come from: the operating system, or the seed of a simulation and the site's name."""
    if secure:
        return lambda *key: SecureSource()
    return lambda *key: SeededSource(job.simulation.seed, site, *key)


def checked_task(job: Job, *, base: Path, scratch: Path, resources: ExitStack, say: Callable[[str], None]) -> Task:
    """The task of ``job`` with its model; if the job is private, its clipping engine was compared with plain gradients. PRIV-328."""
    say("Loading the model")
    task = prepare_task(job, base=base, scratch=scratch, resources=resources)
    if job.privacy.mode != "none":
        say("Checking the clipping engine against plain gradients")
        engine, model = partial(clipping_engine, job), task.model
        for names in phases(job.aggregation, model.exchanged_names):
            with model.training(names):
                check_engine(engine, model.model, model.parameters, task.synthetic_loss, clipping=clipping_rule(job))
    return task
