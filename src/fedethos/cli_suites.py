"""What ``--suite`` takes and what is printed about it: for ``fedethos evaluate`` and ``fedethos client ask``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedethos.suite_names import SUITES

if TYPE_CHECKING:
    from fedethos.suite_record import SuiteScores

SuiteFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--suite", metavar="NAME=PATH", help=f"A benchmark or scenario for language models: {', '.join(SUITES)}. May be given again."
    ),
]
Items = Annotated[int | None, typer.Option(min=10, metavar="N", help="With --suite: at most N items of each; default: all.")]
Seed = Annotated[int, typer.Option(min=0, help="With --suite: of the choice of items and of the intervals.")]


def named(text: str) -> tuple[str, Path]:
    """Name and path of a suite."""
    name, equals, path = text.partition("=")
    if not equals or name not in SUITES:
        raise typer.BadParameter(f"--suite takes NAME=PATH with one of {', '.join(SUITES)}.")
    return name, Path(path)


def print_scores(suites: Mapping[str, SuiteScores]) -> None:
    from fedethos.suite_names import EVERYTHING
    from fedethos.suite_words import BASIS, HEAD, notes, rows

    for name, scores in suites.items():
        typer.echo(f"{name}: {scores.items:,} items")
        print_table([HEAD, *rows(scores.groups[EVERYTHING])])
        for note in notes(scores):
            typer.echo(note)
    typer.echo(BASIS)


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
