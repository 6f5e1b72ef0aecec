"""``fedethos keys``: keys and certificates for a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

keys_app = typer.Typer(no_args_is_help=True, help="Make keys and certificates for a trial.")


@keys_app.callback()
def _group() -> None:
    """Keeps `trial` a verb of its own while it is the only one."""


@keys_app.command()
def trial(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder.")],
    sites: Annotated[list[str] | None, typer.Option("--site", help="Name of a site; repeat it. Default: site-1, site-2, site-3.")] = None,
    address: Annotated[str, typer.Option(help="Where the coordinator listens, host:port.")] = "127.0.0.1:9443",
    connect: Annotated[str | None, typer.Option(help="host:port that the sites connect to; none: the same.")] = None,
    hosts: Annotated[list[str] | None, typer.Option("--host", help="Another name or address of the coordinator; repeat it.")] = None,
) -> None:
    """Make an authority, a server certificate, and for each site a key, documents and public records. Not for production."""
    from fedethos.simulations.trial_records import write_trial_records
    from fedethos.trial import DAYS, make_trial

    names = sites or ["site-1", "site-2", "site-3"]
    make_trial(folder, sites=names, address=address, hosts=hosts or (), connect=connect)
    write_trial_records(folder, names)
    typer.echo(f"{folder}: a coordinator and {len(names)} sites, certificates for {DAYS:g} days. Not for production:")
    typer.echo("this machine has seen every private key.")
    typer.echo(f"Each site has a share of a public table (data.csv), and {folder / 'job.yaml'} is a job on it.")
    typer.echo("At each site: fedethos client review, approve and start.")
    typer.echo(f"Next: fedethos server start --server {folder / 'server' / 'server.yaml'}")
