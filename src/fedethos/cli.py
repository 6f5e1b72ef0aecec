"""``fedethos``: the command line. Results go to stdout, progress and refusals to stderr, exit codes as in ``fedethos.errors``.

Heavy libraries are imported inside the verbs, so that ``fedethos --help`` answers at once. Next on the path:
``fedethos.simulations.engine`` runs what ``simulate`` reads.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import click
import typer

from fedethos import __version__
from fedethos.cli_audit import audit
from fedethos.cli_audit_data import audit_data
from fedethos.cli_client import client_app
from fedethos.cli_compare import compare
from fedethos.cli_config import config_app
from fedethos.cli_data import data_app
from fedethos.cli_env import env
from fedethos.cli_evaluate import evaluate
from fedethos.cli_keys import keys_app
from fedethos.cli_models import models_app
from fedethos.cli_plan import plan
from fedethos.cli_predict import predict
from fedethos.cli_privacy import privacy_app
from fedethos.cli_release import release_app
from fedethos.cli_run import demo, report, resume, simulate
from fedethos.cli_server import server_app
from fedethos.cli_sweep import sweep
from fedethos.collector import spare_collections
from fedethos.errors import FedethosError

BUG, INTERRUPTED = 70, 130

app = typer.Typer(
    name="fedethos",
    help="Federated fine-tuning with differential privacy and global fairness evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)
for _verb in (demo, simulate, resume, report, evaluate, predict, sweep, compare):
    app.command()(_verb)
app.command()(audit_data)
app.add_typer(client_app, name="client")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(models_app, name="models")
privacy_app.command()(plan)
privacy_app.command()(audit)
app.add_typer(privacy_app, name="privacy")
app.add_typer(server_app, name="server")
app.add_typer(keys_app, name="keys")
app.add_typer(release_app, name="release")
app.command()(env)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedethos {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """Options that stand before every verb."""


def main() -> None:
    """Entry point of the ``fedethos`` script."""
    spare_collections()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. No exception gets past it, so none is printed with its data."""
    try:
        result = app(list(arguments), prog_name="fedethos", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except FedethosError as error:
        _print_refusal(error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        result = INTERRUPTED
    except Exception as error:
        _print_incident(error)
        return BUG
    if result == INTERRUPTED:  # typer returns this code for Ctrl-C inside a verb
        typer.echo("Interrupted. Finished rounds are kept: fedethos resume RUN goes on from the last one.", err=True)
    return result if isinstance(result, int) else 0


def _print_refusal(error: FedethosError) -> None:
    typer.echo(f"{error.code} {error.what}", err=True)
    for name, text in (("where", error.where), ("why", error.why), ("fix", error.fix)):
        if text:
            typer.echo(f"  {name:<6} {text}", err=True)


def _print_incident(error: Exception) -> None:
    """Neither the message of the exception nor its traceback is shown: both can quote data."""
    from fedethos.incidents import record

    incident = record(error)
    kept = f"The traceback is in {incident.file}; only you can read it, and it may quote data: look before you share it."
    typer.echo(f"bug: {type(error).__name__}, incident {incident.id}", err=True)
    typer.echo("  why    This is a mistake in fedethos, not in your document or data.", err=True)
    typer.echo(
        f"  fix    {kept if incident.file else 'The traceback could not be written.'} Report it with the output of: fedethos env", err=True
    )
