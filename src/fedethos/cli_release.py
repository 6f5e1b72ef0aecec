"""``fedethos release``: take a run's adapter out of its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

release_app = typer.Typer(no_args_is_help=True, help="Export a run's released adapter.")


@release_app.callback()
def _release() -> None:
    """Keeps ``export`` a sub-command while it is the only one."""


@release_app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write; it must not exist yet.")],
    merged: Annotated[bool, typer.Option("--merged", help="Fold the adapter into its base model, which then runs without PEFT.")] = False,
) -> None:
    """Write the adapter in PEFT's format (a tabular model as it is), or with --merged the whole model with its tokenizer."""
    from fedethos.simulations.export import export_run

    export_run(run, out, merged=merged)
    typer.echo(str(out))
    typer.echo(
        "Next: AutoModel….from_pretrained(FOLDER) in transformers" if merged else "Next: PeftModel.from_pretrained(BASE, FOLDER) in PEFT",
        err=True,
    )
