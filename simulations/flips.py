"""``fedethos evaluate RUN --flip``: does the released model decide differently when a record reads as somebody of another group?

Each record is scored as it is and as its counterfactual (``fedethos.data.counterfactual``); ``fairness/flips.py`` compares the two.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedethos.data.counterfactual import Swap, counterfactual, read_swaps
from fedethos.data.identity import BUILTIN, Swapper
from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.fairness.flips import Flips, flips
from fedethos.fairness.histograms import EDGES
from fedethos.flip_record import FlipAttribute, FlipMeasures, FlipReport, Terms
from fedethos.job import Job
from fedethos.job_data import UNKNOWN, Data
from fedethos.messages import SplitName
from fedethos.progress import Observer
from fedethos.runfolder import RunFolder
from fedethos.simulations.evaluate import ReleasedModel, open_released, shown

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FlipQuestion:
    """What to swap. ``attributes``: empty for all of the job; ``terms``: builtin:NAME or a YAML file, None for those of the job."""

    attributes: Sequence[str] = ()
    terms: str | None = None
    split: SplitName = "test"


def flip_run(folder: RunFolder, question: FlipQuestion, observer: Observer) -> FlipReport:
    """Measure flips on one split of all sites.

    Raises
    ------
    FedethosError
        RUN-961 for an attribute that the job does not declare; RUN-963 when nothing could be swapped in any record; else as for
        ``open_released`` and ``read_swaps``.
    """
    swaps, terms = _swaps(folder, question)
    with open_released(folder, observer) as released:
        observer.stage("Reading the records and swapping the attribute")
        sites = list(released.records(question.split, swaps).values())
        if not any(records.swapped[attribute].changed.any() for records in sites for attribute in swaps):
            raise _nothing_swapped()
        observer.stage(f"Scoring the {question.split} records")
        before = [released.score(released.examples(records)) for records in sites]
        attributes = {}
        for attribute in swaps:
            observer.stage(f"Scoring their counterfactuals by {attribute}")
            attributes[attribute] = _attribute(released, sites, before, attribute)
        return FlipReport(
            schema="fedethos/flips/v1",
            name=released.job.name,
            job_sha256=released.job.sha256,
            basis="oracle",
            split=question.split,
            edge_index=released.edge,
            log_odds=float(EDGES[released.edge]),
            terms=terms,
            attributes=attributes,
        )


def _swaps(folder: RunFolder, question: FlipQuestion) -> tuple[dict[str, Swap], Terms]:
    job = folder.parse_job()
    attributes = list(question.attributes) or list(job.data.sensitive)
    if not attributes or not set(attributes) <= set(job.data.sensitive):
        raise FedethosError(
            "RUN-961",
            "There is no such sensitive attribute in the job." if attributes else "The job declares no sensitive attribute.",
            where="--attribute",
            fix=f"Declared are: {', '.join(job.data.sensitive) or 'none'}.",
        )
    swaps = (
        read_swaps(job.data, job.fairness.identity_terms, Path(folder.read_local().base))
        if question.terms is None
        else read_swaps(job.data, question.terms, Path())
    )
    chosen = {attribute: swaps[attribute] for attribute in attributes}
    return chosen, _described(chosen, question.terms, job)


def _described(swaps: Mapping[str, Swap], asked: str | None, job: Job) -> Terms:
    sets = {attribute: swap.sets for attribute, swap in swaps.items() if isinstance(swap, Swapper)}
    source = job.fairness.identity_terms if asked is None else asked
    if not sets or source is None:
        return Terms(source="none", sha256=None)
    name = "job" if not isinstance(source, str) else source if source.startswith(BUILTIN) else "file"
    return Terms(source=name, sha256=hashlib.sha256(json.dumps(sets, sort_keys=True).encode()).hexdigest())


def _attribute(released: ReleasedModel, sites: Sequence[Records], before: Sequence[Floats], attribute: str) -> FlipAttribute:
    swapped = np.concatenate([records.swapped[attribute].changed for records in sites])
    after = np.full(len(swapped), np.nan)
    after[swapped] = np.concatenate([_scores(released, counterfactual(records, attribute)) for records in sites])
    was, groups = np.concatenate(before), np.concatenate([records.groups[attribute] for records in sites])
    threshold = float(EDGES[released.edge])
    everybody = _measures(flips(was, after, swapped, threshold=threshold))
    by_group = {
        name: _measures(flips(was[own], after[own], swapped[own], threshold=threshold))
        for name, own in ((name, groups == group) for group, name in enumerate(_names(released.job.data, attribute)))
        if own.any()
    }
    return FlipAttribute(**dict(everybody), groups=by_group)


def _scores(released: ReleasedModel, records: Records) -> Floats:
    return released.score(released.examples(records)) if len(records) else np.zeros(0)


def _names(data: Data, attribute: str) -> list[str]:
    return [*data.sensitive[attribute], UNKNOWN]


def _measures(found: Flips) -> FlipMeasures:
    return FlipMeasures(records=found.records, swapped=found.swapped, **{name: shown(one) for name, one in found.estimates.items()})


def _nothing_swapped() -> FedethosError:
    return FedethosError(
        "RUN-963",
        "Nothing could be swapped in any record.",
        why="The model reads no sensitive column, and no identity term occurs.",
        fix="Name a word list with --terms, such as --terms builtin:sex, or write your own (docs/flips.md).",
    )
