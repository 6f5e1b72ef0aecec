"""The end of a run with personal adapters: what they do on their own sites' people, beside the global adapter.

Charged or unprotected counts where the job releases them (``training.personal.release_counts``); exact values where a simulation has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedethos.job import Job
from fedethos.messages import Arrays
from fedethos.server.estimates_json import exact_json, summary_json, without_counts
from fedethos.server.figures import Figures, exact_figures, released_figures
from fedethos.server.measure import ExactMeasure, Measure, ReleaseBySites
from fedethos.storage import JsonValue


@dataclass(frozen=True)
class PersonalFigures:
    """``shown``: from counts that the sites sent, None where the job releases none. ``exact``: what only a simulation sees."""

    shown: Figures | None
    exact: Figures | None

    @property
    def epsilon(self) -> Mapping[str, float]:
        """What each site has spent after these counts; empty where none was charged."""
        return self.shown.epsilon if self.shown else {}

    @property
    def bytes_up(self) -> int:
        return self.shown.bytes_up if self.shown else 0

    @property
    def bytes_down(self) -> int:
        return self.shown.bytes_down if self.shown else 0

    def as_json(self, job: Job, exact_global: Figures | None) -> dict[str, JsonValue]:
        """``personal`` of result.json. ``exact_global``: the global adapter's exact figures, for the accuracy by site."""
        return {**(summary_json(self.shown.final) if self.shown else without_counts()), "oracle": self._oracle(job, exact_global)}

    def _oracle(self, job: Job, exact_global: Figures | None) -> dict[str, JsonValue] | None:
        if self.exact is None or exact_global is None:
            return None
        shared, own = exact_global.site_accuracy(job), self.exact.site_accuracy(job)
        sites: dict[str, JsonValue] = {site: {"global_accuracy": shared[site], "personal_accuracy": own[site]} for site in sorted(own)}
        return {**exact_json(self.exact.final), "sites": sites}


def measure_personal(
    job: Job, arrays: Arrays, round: int, measure: Measure | ReleaseBySites | None, oracle: ExactMeasure | None
) -> PersonalFigures | None:
    """Every site's personal adapter on its own people, with one threshold of their own; None when the job keeps none.

    ``arrays``: the global adapter, which stands in at a site that never trained.
    """
    personal = job.training.personal
    if personal is None:
        return None
    shown = _shown(job, arrays, round, measure) if personal.release_counts and measure else None
    decision = shown.decision if shown else None
    exact = exact_figures(oracle.of_personal(), arrays, round, job, withhold=False, decision=decision) if oracle else None
    return PersonalFigures(shown, exact)


def _shown(job: Job, arrays: Arrays, round: int, measure: Measure | ReleaseBySites) -> Figures:
    if isinstance(measure, ReleaseBySites):
        return released_figures(measure.of_personal(), arrays, round, job)
    return exact_figures(measure.of_personal(), arrays, round, job, withhold=True)
