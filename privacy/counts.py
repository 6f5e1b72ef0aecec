"""Private group counts: which tables a job releases and how often, how much noise they need, and the noise itself.

One person falls into one cell of each table, with all of at most m rows, so k tables have L2 sensitivity m·sqrt(k) under
add-remove and m·sqrt(2k) under replace-one (``CountRelease.l2_sensitivity``). The noise is discrete Gaussian and is accounted as
discrete (``composition.py``). Everything here follows from the job alone: no record and no declared size is looked at.

A release has one or more of these parts. ``scores``: one table label × score bin (of causal-lm, bins of
the response's loss). ``groups``: per sensitive attribute, and per scenario
of the job, a table group × label × prediction (without any: one of everybody). Schedule: both parts of the test people once, at the
end; validation scores once, for the threshold, or each round, when early stopping watches them, with the groups if it watches those. With
``privacy.metrics.baseline`` threshold and test once more, for the untrained model. There is also
``group-scores``, one table group × label × score bin of the training people: once, at the end, for thresholds per group; in every few
rounds for a fairness strategy. It is always paid together with training, whose noise makes room for it (``planner.py``).

Personal adapters whose counts are released (``training.personal``) are counted once, at the end, as the global one: test scores and
groups and, for their threshold, validation scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.composition import epsilon as epsilon_of
from fedethos.privacy.discrete_gaussian import discrete_gaussian, discrete_gaussian_variance
from fedethos.privacy.events import Adjacency, Allotment, CountRelease, Population, purpose_of
from fedethos.privacy.randomness import RandomSource

if TYPE_CHECKING:
    from fedethos.privacy.ledger_plan import Receipt, Release

Tables = Mapping[str, npt.NDArray[np.int64]]

_PRECISION = 1e-3  # of the noise, relative
_LEAST_SIGMA = 0.3
_MOST_NOISE = 1e3  # sigma over sensitivity: epsilon .004 at delta 1e-5


@dataclass(frozen=True, kw_only=True)
class CountPlan:
    """``releases`` times the same tables on the people of one split, of the global adapter or of the ``personal`` ones."""

    parts: tuple[str, ...]
    release: CountRelease
    releases: int
    personal: bool = False

    @property
    def population(self) -> Population:
        return self.release.population

    @property
    def cell_variance(self) -> float:
        """Variance of the noise that one site adds to one cell."""
        return discrete_gaussian_variance(self.release.sigma)

    @property
    def allotment(self) -> Allotment:
        return Allotment(purpose=purpose_of(self.parts, self.population, personal=self.personal), event=self.release, times=self.releases)


def plan_counts(job: Job, *, rows_per_unit: int = 1) -> tuple[CountPlan, ...]:
    """The counts that a site of this job releases; nothing under ``privacy.mode: none``.

    Under add-remove a person is in one split only: validation and test may each cost the job's whole epsilon, beside training. Counts of
    training people, and under replace-one all counts, are paid together with training: together they may cost
    ``privacy.metrics.epsilon_share`` of epsilon.

    Raises
    ------
    FedethosError
        PRIV-302 when no amount of noise keeps the budget.
    """
    privacy = job.privacy
    if privacy.mode == "none" or privacy.epsilon is None:
        return ()
    schedule = _schedule(job)
    cells: dict[Population, int] = {}  # moved by one unit, over all releases of a split
    for _, population, tables, releases, _ in schedule:
        cells[population] = cells.get(population, 0) + tables * releases
    beside_training = privacy.metrics.epsilon_share * privacy.epsilon
    budget = {population: beside_training if population == "train" else privacy.epsilon for population in cells}
    if privacy.adjacency == "replace-one":
        cells, budget = dict.fromkeys(cells, sum(cells.values())), dict.fromkeys(cells, beside_training)
    return tuple(
        CountPlan(
            parts=parts,
            release=CountRelease(
                sigma=sigma_for(
                    tables=cells[population],
                    rows=rows_per_unit,
                    epsilon=budget[population],
                    delta=privacy.delta,
                    adjacency=privacy.adjacency,
                ),
                rows=rows_per_unit,
                tables=tables,
                population=population,
            ),
            releases=releases,
            personal=personal,
        )
        for parts, population, tables, releases, personal in schedule
    )


def release_counts(tables: Tables, receipt: Receipt, source: RandomSource) -> Release[dict[str, npt.NDArray[np.int64]]]:
    """``tables`` with the noise that ``receipt`` paid for. Errors as for ``noisy_tables``, and PRIV-317 for a receipt that was used."""
    event = receipt.event
    if not isinstance(event, CountRelease):
        raise _unpaid("Counts were built, and a receipt for something else was given.")
    return receipt.release(noisy_tables(tables, event, source), event=event)


def noisy_tables(tables: Tables, release: CountRelease, source: RandomSource) -> dict[str, npt.NDArray[np.int64]]:
    """``tables`` with independent noise in every cell. Cells may become negative: clamping would bias small groups.

    Parameters
    ----------
    tables : mapping of int64 arrays
        Exact counts, each a partition of the same people. The caller has cut every unit to ``release.rows`` rows.

    Raises
    ------
    FedethosError
        PRIV-331 when there are other tables than ``release`` describes: their cost would be wrong.
    """
    if len(tables) != release.tables:
        raise _unpaid(f"{len(tables)} count tables were built, and {release.tables} are paid for.")
    return {
        name: table + discrete_gaussian(release.sigma, table.size, source).reshape(table.shape) for name, table in sorted(tables.items())
    }


@lru_cache(maxsize=64)
def sigma_for(*, tables: int, rows: int, epsilon: float, delta: float, adjacency: Adjacency) -> float:
    """The smallest parameter (to 0.1 %) at which ``tables`` tables of the same people cost at most ``epsilon``.

    Raises
    ------
    FedethosError
        PRIV-302 when no noise up to 1,000 times the sensitivity does.
    """

    def excess(log_sigma: float) -> float:
        release = CountRelease(sigma=math.exp(log_sigma), rows=rows, tables=tables, population="test")
        spent = epsilon_of([Allotment(purpose="counts", event=release, times=1)], delta=delta, adjacency=adjacency)
        return math.log(max(spent, 1e-12) / epsilon)

    most = math.log(_MOST_NOISE * rows * math.sqrt(tables))
    low = high = math.log(_first_guess(tables, rows, epsilon, delta))
    while high > most or excess(high) > 0.0:  # in this order: the loss of an endless noise would fill the memory
        if high > most:
            raise FedethosError(
                "PRIV-302",
                f"No reasonable noise keeps {tables} count tables within epsilon {epsilon:g} at delta {delta:g}.",
                where="privacy.epsilon",
                fix="Raise privacy.epsilon or privacy.delta.",
            )
        low, high = high, high + 0.3
    while excess(low) <= 0.0 and low > math.log(_LEAST_SIGMA):
        low -= 0.3
    found = float(brentq(excess, low, high, xtol=_PRECISION / 2)) if excess(low) > 0.0 else low
    while excess(found) > 0.0:
        found += _PRECISION / 2
    return math.exp(found)


def _first_guess(tables: int, rows: int, epsilon: float, delta: float) -> float:
    """Noise by zero-concentrated privacy, rho = (sqrt(epsilon + log(1/delta)) - sqrt(log(1/delta)))^2: somewhat too much."""
    root = math.sqrt(math.log(1.0 / delta))
    rho = (math.sqrt(epsilon + root**2) - root) ** 2
    return max(_LEAST_SIGMA, rows * math.sqrt(tables / (2.0 * rho)))


def watches_groups(job: Job) -> bool:
    """Whether early stopping needs the tables of the groups: for the worst of them, or because scores do not tell what is predicted."""
    rule = job.federation.early_stop
    silent = job.data.label.multiclass or job.counts_responses
    return rule is not None and (rule.metric == "worst_group_accuracy" or (silent and rule.metric != "roc_auc"))


def _schedule(job: Job) -> list[tuple[tuple[str, ...], Population, int, int, bool]]:
    """(parts, split, tables a release, releases, of the personal adapters)."""
    attributes = max(1, len(job.counted))
    rule, rounds = job.federation.early_stop, job.federation.rounds
    of_baseline = int(job.privacy.metrics.baseline)
    chooses = job.fairness.thresholds != "fixed"
    schedule: list[tuple[tuple[str, ...], Population, int, int, bool]] = [
        (("scores", "groups"), "test", 1 + attributes, 1 + of_baseline, False)
    ]
    if rule is not None or chooses:
        schedule.append((("scores",), "validation", 1, (rounds if rule else 1) + (of_baseline if chooses else 0), False))
    if watches_groups(job):
        schedule.append((("groups",), "validation", attributes, rounds, False))
    if job.personal_is_charged:
        schedule.append((("scores", "groups"), "test", 1 + attributes, 1, True))
        if chooses:
            schedule.append((("scores",), "validation", 1, 1, True))
    of_training = len(job.steering_rounds) + (job.fairness.group_constraint is not None)
    if of_training:
        schedule.append((("group-scores",), "train", 1, of_training, False))
    return schedule


def _unpaid(what: str) -> FedethosError:
    return FedethosError("PRIV-331", what, why="The noise is planned for the tables that one person is in. Nothing was sent.")
