"""``fedethos data``: public data sets as tables that jobs read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(no_args_is_help=True, help="Turn public data sets into tables that jobs read.")


@data_app.callback()
def _data() -> None:
    """Keeps ``bbq`` a sub-command while it is the only one."""


@data_app.command()
def bbq(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with BBQ's files, such as Age.jsonl.")],
    out: Annotated[Path, typer.Option("--out", help="The table to write.")] = Path("bbq.jsonl"),
    items: Annotated[int, typer.Option(min=9, help="At most so many items, about as many of each category.")] = 1500,
    seed: Annotated[int, typer.Option(help="Chooses the items.")] = 7,
) -> None:
    """Write BBQ's items with their options by role (biased, counter, unknown), for bbq-smollm2.yaml."""
    from fedethos.data.bbq import read_bbq, write_table

    written = write_table(read_bbq(folder), out, count=items, seed=seed)
    typer.echo(f"{written:,} items in {out}")
    typer.echo("Next: fedethos simulate bbq-smollm2.yaml", err=True)
