"""The benchmarks that ``fedethos evaluate RUN --suite NAME=PATH`` knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedethos.fairness.suites.bbq import bbq
from fedethos.fairness.suites.crows_pairs import crows_pairs
from fedethos.fairness.suites.ethics import ethics
from fedethos.fairness.suites.free_text import free_text
from fedethos.fairness.suites.perplexity import perplexity
from fedethos.fairness.suites.scenarios import scenario
from fedethos.fairness.suites.stereoset import stereoset
from fedethos.fairness.suites.suite import Suite, WrittenSuite
from fedethos.fairness.suites.winobias import winobias

_ONE: dict[str, Callable[..., Suite | WrittenSuite]] = {
    "bbq": bbq,
    "crows-pairs": crows_pairs,
    "stereoset": stereoset,
    "winobias": winobias,
    "perplexity": perplexity,
    "text": free_text,
    "scenario": scenario,
}


def open_suites(name: str, path: Path, *, count: int | None, seed: int) -> Sequence[Suite | WrittenSuite]:
    """Read the benchmark ``name`` of ``fedethos.suite_names.SUITES``; at most about ``count`` items, chosen by ``seed``."""
    if name == "ethics":
        return ethics(path, count=count, seed=seed)
    return [_ONE[name](path, count=count, seed=seed)]
