"""The two pictures of the data audit: how often the favorable label occurs per group, and how well each column tells groups apart."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedethos.fairness.data_audit.proxies import ColumnProxy
from fedethos.fairness.data_audit.rates import RateComparison
from fedethos.governance.charts import FOUR_FIFTHS, WIDTH, Chart, Table
from fedethos.governance.svg import INK, MUTED, PAPER, SERIES, chart_style, printable, to_svg

MAX_DRAWN = 15  # columns; the table has all


def base_rate_chart(name: str, attribute: str, favorable: str, rates: RateComparison, table: Table) -> Chart | None:
    """Dots with their 95 % intervals; None if no group has a row."""
    shown = [group for group in rates.groups if group.rate.value is not None]
    if not shown:
        return None
    title = f"Share of the label {favorable} by {attribute}"
    description = (
        "Dots are the rates in the records, lines their 95 % intervals. Hollow: fewer people than the job ever shows. The dashed line "
        "is four fifths of the highest rate among groups that are large enough."
    )
    with chart_style():
        figure = Figure(figsize=(WIDTH, 0.95 + 0.34 * len(shown)), layout="constrained")
        panel = figure.subplots()
        for row, group in enumerate(shown):
            value, low, high = (number or 0.0 for number in (group.rate.value, group.rate.low, group.rate.high))
            panel.plot([low, high], [row, row], color=SERIES[0], linewidth=2.2, solid_capstyle="butt")
            face = PAPER if group.small else SERIES[0]
            panel.plot([value], [row], marker="o", markersize=6.5, markerfacecolor=face, markeredgecolor=SERIES[0], markeredgewidth=1.2)
        panel.set_yticks(range(len(shown)), [printable(group.group) for group in shown])
        panel.set_ylim(len(shown) - 0.4, -0.6)
        panel.set_xlim(-0.015, 1.015)
        panel.grid(visible=False, axis="y")
        panel.tick_params(length=0)
        compared = [group.rate.value for group in shown if not group.small and group.rate.value is not None]
        if len(compared) > 1:
            panel.axvline(FOUR_FIFTHS * max(compared), color=INK, linewidth=1, linestyle=(0, (4, 3)))
        svg = to_svg(figure, name=name, title=title, description=description)
    return Chart(name, title, description, svg, table)


def proxy_chart(name: str, attribute: str, proxies: Sequence[ColumnProxy], together: float | None, table: Table) -> Chart | None:
    """AUC per column from .5 (says nothing) to 1 (gives it away); None without columns."""
    if not proxies:
        return None
    title = f"How well each column tells {attribute}"
    description = (
        "AUC of a prediction from that column alone, for people it was not fitted on: 0.5 is guessing, 1 gives the attribute away. "
        "Hatched: the column is itself a sensitive attribute."
    )
    drawn = proxies[:MAX_DRAWN]
    bars = [(proxy.column, proxy.auc, proxy.sensitive) for proxy in drawn]
    bars += [("all that are not sensitive", together, False)] if together is not None else []
    with chart_style():
        figure = Figure(figsize=(WIDTH, 0.75 + 0.3 * len(bars)), layout="constrained")
        panel = figure.subplots()
        for row, (_, auc, sensitive) in enumerate(bars):
            last = row == len(drawn)
            colour = SERIES[1] if last else SERIES[0]
            face = "none" if sensitive else colour
            panel.barh(row, max(auc, 0.5) - 0.5, left=0.5, height=0.62, facecolor=face, edgecolor=colour, hatch="///" if sensitive else "")
            panel.annotate(f"{auc:.2f}", (max(auc, 0.5), row), xytext=(5, 0), textcoords="offset points", va="center", color=MUTED)
        panel.set_yticks(range(len(bars)), [printable(bar[0]) for bar in bars])
        panel.invert_yaxis()
        panel.set_xlim(0.5, 1.04)
        panel.set_xlabel("AUC, tested on people that the prediction has not seen")
        panel.tick_params(length=0)
        panel.grid(visible=False, axis="y")
        svg = to_svg(figure, name=name, title=title, description=description)
    return Chart(name, title, description, svg, table)
