"""Which limits of the text benchmark hold, and that its methods are jobs of one series."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fedethos.documents import load_job
from fedethos.simulations import series
from fedethos.simulations.benchmarks import adult_text
from fedethos.simulations.benchmarks.adult_text import Figures, Limits

LIMITS = Limits(share_of_gap=0.5, accuracy_lost=0.015)


def figures(accuracy: float, tpr_gap: float, fpr_gap: float) -> list[Figures]:
    return [Figures(accuracy, 0.9, tpr_gap, fpr_gap, verdict=True)]


def test_each_limit_is_missed_by_its_own_figure() -> None:
    plain = figures(0.81, -0.20, -0.10)
    assert adult_text.misses(plain, figures(0.80, 0.09, -0.05), LIMITS) == []
    assert adult_text.misses(plain, figures(0.80, 0.11, -0.05), LIMITS) == ["tpr_gap"]
    assert adult_text.misses(plain, figures(0.80, 0.09, 0.06), LIMITS) == ["fpr_gap"]
    assert adult_text.misses(plain, figures(0.79, 0.09, 0.0), LIMITS) == ["accuracy"]


def test_opposite_gaps_of_two_seeds_cancel_because_they_are_signed() -> None:
    plain = figures(0.81, -0.20, -0.10) * 2
    assert adult_text.misses(plain, figures(0.81, -0.2, 0.0) + figures(0.81, 0.2, 0.0), LIMITS) == []


def test_all_methods_are_jobs_on_the_same_prepared_sites() -> None:
    job_file = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))
    plain, ours = (load_job(job_file, settings) for settings in adult_text.read_methods().methods.values())
    assert series._shared(plain) == series._shared(ours)
    assert (plain.fairness.strategy, ours.fairness.strategy) == ("none", "controller")
    assert plain.privacy.epsilon == ours.privacy.epsilon == 8.0
