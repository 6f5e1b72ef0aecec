"""Accuracy against a fairness gap, one point per run: the picture of ``fedethos compare``.

Colour and shape stand for epsilon, which the label repeats. Labels stand in a column at the right, each at the end of a line from
its point, and never on one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedethos.governance.charts import WIDTH, Chart, Table
from fedethos.governance.compare import Number
from fedethos.governance.svg import INK, MARKERS, MUTED, PAPER, SERIES, chart_style, printable, to_svg

MAX_POINTS = 40  # more than these are in the table only
_LINE = 0.27  # inches from one label to the next


@dataclass(frozen=True)
class Point:
    """``epsilon`` as it is written, "none" without privacy. ``gap``: smaller is better, where a ``verdict`` on fairness was possible."""

    label: str
    epsilon: str
    gap: Number
    quality: Number
    verdict: bool


def tradeoff_chart(
    name: str, title: str, description: str, points: Sequence[Point], *, axes: tuple[str, str], table: Table
) -> Chart | None:
    """``axes``: names of gap and quality. None if fewer than two points have both."""
    drawn = [point for point in points if point.gap.value is not None and point.quality.value is not None][:MAX_POINTS]
    if len(drawn) < 2:
        return None
    left_out = [point.label for point in points if point not in drawn]
    if left_out:
        description += f" Not drawn, for a number is missing or there is no room: {', '.join(left_out)}."
    with chart_style():
        height = max(3.4, _LINE * len(drawn) + 0.9)
        figure = Figure(figsize=(WIDTH, height))
        panel = figure.add_axes((0.075, 0.5 / height, 0.47, 1 - 0.7 / height))
        _points(panel, drawn)
        _labels(panel, drawn, gap=_LINE / (height - 0.7))
        panel.set(xlabel=f"{axes[0]} (left is better)", ylabel=f"{axes[1]} (up is better)")
        svg = to_svg(figure, name=name, title=title, description=description)
    return Chart(name, title, description, svg, table)


def _points(panel: Axes, points: Sequence[Point]) -> None:
    panel.tick_params(length=0)
    panel.tick_params(axis="y", labelcolor=MUTED)
    for axis, numbers in ((panel.xaxis, [point.gap for point in points]), (panel.yaxis, [point.quality for point in points])):
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        low, high = _range(bound for number in numbers for bound in (number.value, number.low, number.high) if bound is not None)
        (panel.set_xlim if axis is panel.xaxis else panel.set_ylim)(low, high)
    for point in points:
        colour, marker = _look(point, points)
        x, y = point.gap.value or 0.0, point.quality.value or 0.0
        if point.gap.low is not None and point.gap.high is not None:
            panel.plot([point.gap.low, point.gap.high], [y, y], color=colour, linewidth=1.1, alpha=0.75)
        if point.quality.low is not None and point.quality.high is not None:
            panel.plot([x, x], [point.quality.low, point.quality.high], color=colour, linewidth=1.1, alpha=0.75)
        panel.plot([x], [y], marker=marker, markersize=7.5, zorder=3, **_fill(point, colour))


def _look(point: Point, points: Sequence[Point]) -> tuple[str, str]:
    """Sixteen pairs of colour and shape, one per epsilon in order of appearance."""
    place = list(dict.fromkeys(one.epsilon for one in points)).index(point.epsilon)
    return SERIES[place % 4], MARKERS[(place + place // 4) % 4]


def _fill(point: Point, colour: str) -> dict[str, Any]:
    """Hollow where the gap says nothing about fairness."""
    edge = {"markeredgecolor": PAPER, "markeredgewidth": 0.8} if point.verdict else {"markeredgecolor": colour, "markeredgewidth": 1.4}
    return {"markerfacecolor": colour if point.verdict else PAPER, **edge}


def _labels(panel: Axes, points: Sequence[Point], *, gap: float) -> None:
    low, high = panel.get_ylim()
    left, right = panel.get_xlim()
    wished = [((point.quality.value or 0.0) - low) / (high - low) for point in points]
    for point, at, height in zip(points, wished, spread(wished, gap), strict=True):
        colour, marker = _look(point, points)
        x = ((point.gap.value or 0.0) - left) / (right - left)
        panel.plot([x, 1.05], [at, height], transform=panel.transAxes, color=MUTED, linewidth=0.6, alpha=0.7, clip_on=False, zorder=1)
        panel.plot([1.065], [height], marker=marker, markersize=5.5, transform=panel.transAxes, clip_on=False, **_fill(point, colour))
        text = f"{printable(point.label, 30)}, epsilon {point.epsilon}{'' if point.verdict else ', no verdict'}"
        panel.text(1.085, height, text, transform=panel.transAxes, va="center", color=INK, fontsize=8.5)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The values moved as little as an upward and a downward pass need, so that neighbours are ``gap`` apart and stay within [0, 1]."""
    order = sorted(range(len(values)), key=values.__getitem__)
    placed = list(values)
    least = 0.0
    for index in order:
        placed[index] = max(placed[index], least)
        least = placed[index] + gap
    most = 1.0
    for index in reversed(order):
        placed[index] = min(placed[index], most)
        most = placed[index] - gap
    return placed


def _range(values: Iterable[float]) -> tuple[float, float]:
    """All values with some air, at least 0.05 wide."""
    known = list(values)
    low, high = min(known), max(known)
    air = max(0.06 * (high - low), (0.05 - (high - low)) / 2)
    return low - air, high + air
