"""``fedethos compare``: finished runs and sweeps side by side, on the terminal and as one page."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedethos.governance.compare import Comparison


class Basis(StrEnum):
    ORACLE = "oracle"
    RELEASED = "released"


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Folders of finished runs or sweeps.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with the pictures, too.")] = None,
    basis: Annotated[
        Basis, typer.Option(help="Of single runs. released: what each run shows. oracle: exact values of simulations.")
    ] = Basis.RELEASED,
    anyway: Annotated[bool, typer.Option("--anyway", help="Also if the runs were tested on different people; every page says so.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show runs side by side: quality, fairness gaps, epsilon, cost, and what differs in their jobs."""
    from fedethos.governance.compare import compare as compare_runs
    from fedethos.governance.compare_page import as_json as to_json
    from fedethos.governance.compare_page import page
    from fedethos.storage import write_atomically

    comparison = compare_runs(runs, basis=basis.value, anyway=anyway)
    if out is not None:
        write_atomically(out, page(comparison).encode("utf-8", "replace"))
    if as_json:
        typer.echo(json.dumps(to_json(comparison), indent=2))
        return
    _print(comparison)
    typer.echo(f"Page: {out}" if out is not None else "Next: add --out compare.html for the page with the pictures.")


def _print(comparison: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from fedethos.governance.charts import Table
    from fedethos.governance.compare_page import block, cautions, differences

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=180)

    def show(table: Table) -> None:
        drawn = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in table.columns:
            drawn.add_column(Text(column))
        for row in table.rows:
            drawn.add_row(*(Text(cell) for cell in row))
        console.print(drawn)
        console.print()

    for sentence in cautions(comparison):
        console.print(Text(f"! {sentence}", style="bold yellow"), soft_wrap=True)
    for place, (kind, entries) in enumerate(comparison.tables.items()):
        words = block(kind, entries, place, draw=False)
        console.print(Text(f"\n{words.title}", style="bold"), soft_wrap=True)
        console.print(Text(words.note), soft_wrap=True)
        console.print()
        show(words.quality)
        for attribute, gaps in words.gaps.items():
            console.print(Text(f"By {attribute}"))
            show(gaps)
        show(words.cost)
    if comparison.differing:
        console.print(Text("What differs in the jobs", style="bold"))
        show(differences(comparison))
