"""``fedethos client``: what a site's operator does."""

from __future__ import annotations

import typer

from fedethos.cli_client_run import add_run_verbs

client_app = typer.Typer(no_args_is_help=True, help="Run this site's node.")
add_run_verbs(client_app)
