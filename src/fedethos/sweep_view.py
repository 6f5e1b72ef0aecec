"""A sweep on the terminal: grid points down, measures across, each cell the mean over seeds with the half-width of its interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedethos.sweep_record import SWEEP_FILE, Estimate, Sweep, SweepPoint
from fedethos.wording import epsilon

_QUALITY = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "roc_auc": "AUC",
    "worst_group_accuracy": "worst group",
}
_FAIRNESS = {
    "demographic_parity_difference": "dem. parity",
    "equalized_odds_difference": "eq. odds",
    "equal_opportunity_difference": "eq. opportunity",
    "signed_demographic_parity_difference": "signed DP",
    "signed_equal_opportunity_difference": "signed EOD",
    "absolute_equal_opportunity_difference": "|EOD|",
}
_PERSONAL = "personal"
_BASES = {
    "oracle": "exact values, which only a simulation can see",
    "released": "what the sites released, with its privacy noise",
    "unprotected": "counts that were sent without protection",
}

Cells = dict[str, dict[str, Estimate]]  # row name -> measure -> estimate


def print_sweep(sweep: Sweep, folder: Path, console: Console | None = None) -> None:
    """Print the sweep's one table (in blocks of measures), the paired differences and what the numbers are."""
    console = console or _standard_output()
    console.print(Text(f"{sweep.name}: {len(sweep.points)} grid points, {len(sweep.seeds)} seeds", style="bold"))
    console.print(Text("Mean over seeds ± half of the 95 % t-interval."))
    facts = {point.name: _facts(point) for point in sweep.points}
    for heading, block in _blocks(sweep.points):
        cells = {point.name: point.measures for point in sweep.points}
        _print_block(console, heading, block, cells, facts, _mean)
        facts = {}
    differences = {pair.point: pair.measures for pair in sweep.paired if pair.measures}
    if differences:
        first = sweep.points[0].name
        console.print(Text(f"\nDifferences to {first}, seed by seed, ± half of the 95 % t-interval (paired)", style="bold"))
        for heading, block in _blocks(sweep.points):
            _print_block(console, heading, block, differences, {}, _difference)
    for sentence in footnotes(sweep):
        console.print(Text(sentence, style="dim"), soft_wrap=True)
    console.print(Text(f"Numbers: {folder / SWEEP_FILE}. Next: fedethos compare {folder} --out compare.html"), soft_wrap=True)


def footnotes(sweep: Sweep) -> list[str]:
    """What the numbers are, and what they are not."""
    bases = {point.name: point.basis for point in sweep.points if point.basis}
    if len(set(bases.values())) == 1:
        notes = [f"Basis {basis}: {_BASES[basis]}." for basis in set(bases.values())]
    else:
        named = "; ".join(f"{name}: {basis}" for name, basis in bases.items())
        notes = [f"The points do not have the same basis ({named}); those that differ are not subtracted."] if bases else []
    if not sweep.same_people:
        notes.append(
            "The points were tested on different people (the grid moves data, split or partition): differences are not the model's alone."
        )
    silent = [f"{point.name} ({point.without_verdict} of {len(point.finished)})" for point in sweep.points if point.without_verdict]
    if silent:
        notes.append(
            f"No fairness verdict in runs of {'; '.join(silent)}: the model is near constant or groups are too small. "
            "A small gap there is not fairness."
        )
    if any(point.epsilon is not None for point in sweep.points):
        notes.append(
            "Epsilon of a line is that of one run, not of the sweep. All runs use the same people: on real records, choosing the best "
            "line by these results costs more than its epsilon."
        )
    notes.append("The intervals say how far seeds matter (split, partition, start, noise) on the same records, not what other people give.")
    if any(name.endswith(".signed_equal_opportunity_difference") for point in sweep.points for name in point.measures):
        notes.append(
            "signed DP, signed EOD: favorable rate and TPR, first minus second group of the job; |EOD|: mean of the absolute value."
        )
    return notes


def _standard_output() -> Console:
    """Never narrower than its tables: a folded number is not readable, and a pipe has no width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=180)


def _facts(point: SweepPoint) -> tuple[str, str]:
    done = len(point.finished)
    failed = "".join(f", {run.code}" for run in point.runs if run.status == "failed")
    return f"{done}{'' if done == len(point.runs) else f' of {len(point.runs)}'}{failed}", epsilon(point.epsilon)


def _blocks(points: Sequence[SweepPoint]) -> list[tuple[str, dict[str, str]]]:
    """(heading, measure -> column) of quality and of each attribute; only measures that some point has."""
    names = {name for point in points for name in point.measures}
    attributes = sorted({name.rpartition(".")[0] for name in names} - {"", _PERSONAL})
    blocks = [("Quality", _QUALITY), ("Personal adapters", {f"{_PERSONAL}.{name}": label for name, label in _QUALITY.items()})]
    blocks += [(_by(attribute), {f"{attribute}.{gap}": label for gap, label in _FAIRNESS.items()}) for attribute in attributes]
    return [(heading, kept) for heading, block in blocks if (kept := {name: label for name, label in block.items() if name in names})]


def _by(attribute: str) -> str:
    """``By sex``; of personal adapters, whose measures begin with ``personal.``, that too."""
    shown = attribute.removeprefix(f"{_PERSONAL}.")
    return f"By {shown}" if shown == attribute else f"By {shown}, personal"


def _print_block(
    console: Console,
    heading: str,
    block: dict[str, str],
    rows: Cells,
    facts: dict[str, tuple[str, str]],
    cell: Callable[[Estimate, int], str],
) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(Text(heading, style="bold"), overflow="fold")
    for column in (("seeds", "epsilon") if facts else ()) + tuple(block.values()):
        table.add_column(column, no_wrap=True)
    most = max((estimate.count for measures in rows.values() for estimate in measures.values()), default=0)
    for name, measures in rows.items():
        cells = [cell(measures[measure], most) if measure in measures else "not run" for measure in block]
        table.add_row(Text(name), *facts.get(name, ()), *cells)
    console.print()
    console.print(table)


def _mean(estimate: Estimate, most: int) -> str:
    return _cell(estimate, most, ".3f")


def _difference(estimate: Estimate, most: int) -> str:
    return _cell(estimate, most, "+.3f")


def _cell(estimate: Estimate, most: int, form: str) -> str:
    """``0.812 ± 0.010``; fewer seeds than elsewhere are counted: ``0.812 ± 0.010 (3)``."""
    if estimate.mean is None:
        return "not measurable"
    half = "" if estimate.high is None else f" ± {estimate.high - estimate.mean:.3f}"
    return f"{estimate.mean:{form}}{half}" + (f" ({estimate.count})" if estimate.count < most else "")
