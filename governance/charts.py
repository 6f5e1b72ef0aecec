"""The charts of a run, each with its title, description and the table behind it, all from the same numbers.

Shape and text say everything that colour says. ``governance/report.py`` puts them on a page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from fedethos.governance.svg import INK, MARKERS, MUTED, PAPER, SERIES, chart_style, printable, to_svg
from fedethos.records import PrivacyReport, Round
from fedethos.result import GapName, Group, Interval, MetricName, OracleAttribute
from fedethos.wording import WITHHELD, epsilon, guarantee, interval, natural, number, size

WIDTH = 9.6  # inches; the page scales it
FOUR_FIFTHS = 0.8  # 29 CFR 1607.4(D): a rate below four fifths of the highest one is evidence of adverse impact
MAX_BARS = 40  # more sites than these are in the table only
MAX_ROWS = 200  # of a table of sites; the files have the rest

RATES = {"selection_rate": "Selection rate", "tpr": "True-positive rate", "fpr": "False-positive rate", "accuracy": "Accuracy"}


@dataclass(frozen=True)
class Table:
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def first(self, limit: int, file: str) -> Table:
        """The first rows, and a last one that names the file with the rest."""
        if len(self.rows) <= limit:
            return self
        rest = (f"and {len(self.rows) - limit} more, in {file}", *[""] * (len(self.columns) - 1))
        return Table(self.columns, (*self.rows[:limit], rest))


@dataclass(frozen=True)
class Chart:
    """``svg`` is trusted markup; every other text still has to be escaped."""

    name: str
    title: str
    description: str
    svg: str
    table: Table


def groups_chart(
    name: str, attribute: str, groups: Mapping[str, Group], oracle: OracleAttribute | None, rates: Mapping[str, str] = RATES
) -> Chart:
    """Rates of every group with their intervals. ``oracle``: exact points to mark beside released values. ``rates``: of ``RATES``, those
    that the task has."""
    with chart_style():
        figure = Figure(figsize=(WIDTH, 0.85 + 0.34 * len(groups)), layout=ConstrainedLayoutEngine(wspace=0.06))
        panels: Sequence[Axes] = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
        for panel, (rate, label) in zip(panels, rates.items(), strict=True):
            _rate_panel(panel, rate, label, groups, oracle)
        panels[0].set_yticks(range(len(groups)), [printable(group) for group in groups])
        panels[0].set_ylim(len(groups) - 0.4, -0.6)
        title = f"Rates by {attribute}"
        description = "Dots are the measured rates of each group, bars their 95 % intervals." + (
            " The diamonds below them are the exact values, which only a simulation can see." if oracle else ""
        )
        svg = to_svg(figure, name=name, title=title, description=description)
    exact = tuple(f"{label}, exact" for label in rates.values()) if oracle else ()
    rows = tuple(
        (group, WITHHELD if values.count is None else f"{values.count:,}", *(interval(_rate(values, rate)) for rate in rates))
        + (tuple(_or_none(_exact(oracle, group, rate), ".3f") for rate in rates) if oracle else ())
        for group, values in groups.items()
    )
    return Chart(name, title, description, svg, Table(("Group", "People", *rates.values(), *exact), rows))


def _rate_panel(panel: Axes, rate: str, label: str, groups: Mapping[str, Group], oracle: OracleAttribute | None) -> None:
    panel.set_title(label)
    panel.grid(visible=False, axis="y")
    panel.tick_params(axis="y", length=0)
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    panel.set_xlim(*_limits(bound for group in groups.values() for bound in _bounds(_rate(group, rate))))
    if rate == "selection_rate":
        _four_fifths_line(panel, groups)
    for row, (group, values) in enumerate(groups.items()):
        item = _rate(values, rate)
        if item.low is None or item.high is None:
            place = panel.get_yaxis_transform()
            box = {"facecolor": PAPER, "edgecolor": "none", "pad": 2}
            nothing = "nobody" if values.count == 0 else WITHHELD
            panel.text(0.5, row, nothing, transform=place, ha="center", va="center", color=MUTED, style="italic", bbox=box)
            continue
        panel.plot([item.low, item.high], [row, row], color=SERIES[0], linewidth=2.2, solid_capstyle="butt")
        if item.value is not None:
            panel.plot([item.value], [row], marker="o", markersize=6, color=SERIES[0], markeredgecolor=PAPER, markeredgewidth=0.7)
        exact = _exact(oracle, group, rate)
        if exact is not None:
            panel.plot(
                [exact], [row + 0.3], marker="D", markersize=4.5, markerfacecolor="none", markeredgecolor=SERIES[1], markeredgewidth=1.2
            )


def _four_fifths_line(panel: Axes, groups: Mapping[str, Group]) -> None:
    measured = [group.selection_rate.value for group in groups.values() if group.selection_rate.value is not None]
    if len(measured) > 1:
        line = FOUR_FIFTHS * max(measured)
        panel.axvline(line, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        panel.set_xlabel(f"dashed: 4/5 of the highest rate ({line:.3f})", fontsize=8)


CHARTED: dict[MetricName, str] = {
    "roc_auc": "AUC",
    "balanced_accuracy": "Balanced accuracy",
    "worst_group_accuracy": "Worst-group accuracy",
}
CHARTED_GAPS: dict[GapName, str] = {
    "equalized_odds_difference": "Equalized-odds difference",
    "demographic_parity_difference": "Demographic-parity difference",
}


def metrics_chart(rounds: Sequence[Round], words: Mapping[MetricName, str]) -> Chart | None:
    """Validation metrics per round, those of ``words``; None if none was released."""
    series = {label: [getattr(record.metrics, name) for record in rounds] for name, label in words.items()}
    return _lines_chart(
        "metrics",
        "Quality per round",
        f"Validation metrics after every round{_exact_mark(rounds)}; round 0 is before training.",
        [record.round for record in rounds],
        {"Quality": series},
    )


def _exact_mark(rounds: Sequence[Round]) -> str:
    return " (exact values, which only a simulation can see)" if rounds[-1].basis == "oracle" else ""


def gaps_chart(rounds: Sequence[Round], attributes: Sequence[str], words: Mapping[GapName, str]) -> Chart | None:
    """Fairness gaps per round and attribute, those of ``words``; None if none was released."""
    panels: dict[str, dict[str, list[float | None]]] = {label: {} for label in words.values()}
    for attribute in attributes[: len(SERIES)]:
        gaps = [record.fairness.get(attribute) for record in rounds]
        for name, label in words.items():
            panels[label][attribute] = [getattr(gap, name) if gap else None for gap in gaps]
    return _lines_chart(
        "gaps",
        "Fairness gaps per round",
        f"Gaps on the validation split after every round{_exact_mark(rounds)}, smaller is better. They carry no intervals: "
        "read the trend, not the digits.",
        [record.round for record in rounds],
        panels,
    )


def _lines_chart(
    name: str, title: str, description: str, rounds: Sequence[int], panels: Mapping[str, Mapping[str, Sequence[float | None]]]
) -> Chart | None:
    series = {(panel, label): values for panel, lines in panels.items() for label, values in lines.items()}
    if not any(value is not None for values in series.values() for value in values):
        return None
    with chart_style():
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (heading, lines) in zip(axes, panels.items(), strict=True):
            _lines_panel(panel, rounds, lines)
            panel.set_title(heading if len(panels) > 1 else "")
        svg = to_svg(figure, name=name, title=title, description=description)
    columns = ("Round", *(label if len(panels) == 1 else f"{panel}, {label}" for panel, label in series))
    rows = tuple((str(round_), *(number(values[row]) for values in series.values())) for row, round_ in enumerate(rounds))
    return Chart(name, title, description, svg, Table(columns, rows))


def _lines_panel(panel: Axes, rounds: Sequence[int], lines: Mapping[str, Sequence[float | None]]) -> None:
    panel.set_xlabel("round")
    panel.tick_params(length=0)
    panel.tick_params(axis="y", labelcolor=MUTED)
    panel.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    panel.grid(visible=False, axis="x")
    low, high = _limits(value for values in lines.values() for value in values if value is not None)
    panel.set_ylim(low, high)
    ends = {}
    for (label, values), colour, marker in zip(lines.items(), SERIES, MARKERS, strict=False):
        known = [(round_, value) for round_, value in zip(rounds, values, strict=True) if value is not None]
        if known:
            panel.plot(
                *zip(*known, strict=True),
                color=colour,
                marker=marker,
                markersize=5.5,
                linewidth=1.6,
                markeredgecolor=PAPER,
                markeredgewidth=0.7,
            )
            ends[label] = (known[-1], colour)
    heights = _spread([end[1] for end, _ in ends.values()], gap=0.075 * (high - low))
    for (label, ((last, _), colour)), height in zip(ends.items(), heights, strict=True):
        panel.annotate(f"{printable(label)}", (last, height), xytext=(8, 0), textcoords="offset points", va="center", color=colour)


def epsilon_chart(privacy: PrivacyReport) -> Chart | None:
    """Epsilon spent per site against the job's target; None under ``mode: none`` and for more than ``MAX_BARS`` sites."""
    sites = sorted(privacy.sites.items(), key=lambda item: natural(item[0]))
    spent = [(name, site.epsilon) for name, site in sites if site.epsilon is not None]
    if not spent or len(spent) > MAX_BARS:
        return None
    with chart_style():
        figure = Figure(figsize=(WIDTH, 0.75 + 0.3 * len(spent)), layout="constrained")
        panel = figure.subplots()
        _bars(panel, [name for name, _ in spent], [value for _, value in spent], [epsilon(value) for _, value in spent])
        panel.set_xlabel("epsilon")
        if privacy.target_epsilon is not None:
            panel.axvline(privacy.target_epsilon, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            panel.set_xlabel(f"epsilon; dashed: the job's limit of {privacy.target_epsilon:g}")
            panel.set_xlim(0, max(privacy.target_epsilon, *(value for _, value in spent)) * 1.08)
        title, description = "Epsilon per site", f"What training has spent at each site, {guarantee(privacy)}; smaller is more private."
        svg = to_svg(figure, name="epsilon", title=title, description=description)
    return Chart("epsilon", title, description, svg, privacy_table(privacy))


def privacy_table(privacy: PrivacyReport) -> Table:
    """The accounting of every site."""
    columns = ("Site", "Epsilon", "Delta", "Private steps", "Sampling rate", "Noise multiplier", "Declared size")
    rows = tuple(
        (
            name,
            epsilon(site.epsilon),
            _or_none(site.delta, "g"),
            f"{site.steps:,}",
            _or_none(site.sampling_rate, ".4f"),
            _or_none(site.noise_multiplier, ".3f"),
            _or_none(site.declared_size, ",d"),
        )
        for name, site in sorted(privacy.sites.items(), key=lambda item: natural(item[0]))
    )
    return Table(columns, rows).first(MAX_ROWS, "privacy.json")


def bytes_chart(rounds: Sequence[Round]) -> Chart | None:
    """Bytes on the wire per round; None before the first training round."""
    trained = [record for record in rounds if record.bytes_up or record.bytes_down]
    if not trained:
        return None
    with chart_style():
        figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
        panel = figure.subplots()
        places = [record.round for record in trained]
        for shift, label, counts, colour, hatch in (
            (-0.2, "sent by the sites", [record.bytes_up for record in trained], SERIES[0], ""),
            (0.2, "sent to the sites", [record.bytes_down for record in trained], SERIES[1], "///"),
        ):
            heights = [count / 1e6 for count in counts]
            face = colour if not hatch else "none"
            panel.bar([place + shift for place in places], heights, 0.36, label=label, facecolor=face, edgecolor=colour, hatch=hatch)
        panel.set(xlabel="round", ylabel="MB")
        panel.tick_params(length=0)
        panel.tick_params(axis="y", labelcolor=MUTED)
        panel.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        panel.grid(visible=False, axis="x")
        panel.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, borderaxespad=0)
        title, description = "Bytes per round", "What all sites together sent and were sent in every round."
        svg = to_svg(figure, name="bytes", title=title, description=description)
    rows = tuple((str(record.round), size(record.bytes_up), size(record.bytes_down)) for record in trained)
    return Chart("bytes", title, description, svg, Table(("Round", "Sent by the sites", "Sent to the sites"), rows))


def _bars(panel: Axes, labels: Sequence[str], values: Sequence[float], texts: Sequence[str]) -> None:
    """Horizontal bars, their number written inside the end."""
    panel.barh(range(len(values)), values, height=0.62, color=SERIES[0])
    panel.set_yticks(range(len(labels)), [printable(label) for label in labels])
    panel.invert_yaxis()
    panel.tick_params(length=0)
    panel.grid(visible=False, axis="y")
    for row, (value, text) in enumerate(zip(values, texts, strict=True)):
        panel.annotate(text, (value, row), xytext=(-5, 0), textcoords="offset points", ha="right", va="center", color=PAPER)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """A range that holds the values with some air, at least 0.2 wide, inside [0, 1] (a little more, for the dots at its ends)."""
    known = list(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    air = max(0.06 * (high - low), (0.2 - (high - low)) / 2, 0.01)
    return max(low - air, -0.015), min(high + air, 1.015)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """The values, pushed up where needed so that neighbours are ``gap`` apart: labels must not collide."""
    placed = list(values)
    order = sorted(range(len(values)), key=values.__getitem__)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    return placed


def _rate(group: Group, rate: str) -> Interval:
    value: Interval = getattr(group, rate)
    return value


def _exact(oracle: OracleAttribute | None, group: str, rate: str) -> float | None:
    if oracle is None or group not in oracle.groups:
        return None
    value: float | None = getattr(oracle.groups[group], rate)
    return value


def _bounds(item: Interval) -> list[float]:
    return [bound for bound in (item.low, item.high) if bound is not None]


def _or_none(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)
