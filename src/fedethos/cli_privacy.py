"""``fedethos privacy``: what was spent and what it means, read from the ledger of a run or of a site."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedethos.errors import FedethosError

if TYPE_CHECKING:
    from fedethos.privacy.ledger_chain import Head
    from fedethos.privacy.ledger_state import LedgerState
    from fedethos.privacy.statement import AccountSpending

privacy_app = typer.Typer(no_args_is_help=True, help="What was spent on whom, and what it means.")

AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]


@privacy_app.command()
def spent(
    place: Annotated[Path, typer.Argument(metavar="[RUN|LEDGER]", help="A run folder, or a ledger file.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Print what each account of a ledger has spent and what is left, after checking every entry."""
    from fedethos.privacy.statement import spending

    state, head = _read(place)
    accounts = spending(state)
    if as_json:
        body = {"head": dataclasses.asdict(head), "accounts": [dataclasses.asdict(account) for account in accounts]}
        typer.echo(json.dumps(body, indent=2))
        return
    _print_accounts(accounts)
    typer.echo(f"{head.count} entries, none changed or missing. Head: {head.hash}")
    typer.echo("Keep the head somewhere else: it shows later that nothing before it was touched.")
    typer.echo(f"Next: fedethos privacy statement {place}", err=True)


@privacy_app.command()
def statement(run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a ledger file.")], as_json: AsJson = False) -> None:
    """Say in plain words what the run's privacy guarantee covers and what it does not (NIST SP 800-226)."""
    from fedethos.privacy.statement import statement as state_guarantee

    state, _ = _read(run)
    if not state.plans:
        raise FedethosError("RUN-903", "Nothing was committed in this ledger.", where=str(run), fix="Name the folder of a private run.")
    words = state_guarantee(state)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(words), indent=2))
        return
    for line in words.lines:
        typer.echo(line)
    typer.echo(f"Next: fedethos privacy spent {run}", err=True)


def _read(place: Path) -> tuple[LedgerState, Head]:
    from fedethos.privacy.ledger import read_ledger
    from fedethos.privacy.ledger_chain import head_path

    path = _ledger_of(place) if place.is_dir() else place
    if not path.is_file() and not head_path(path).is_file():
        raise FedethosError(
            "RUN-903",
            "There is no privacy ledger here.",
            where=str(path),
            why="A run with privacy.mode: none keeps none, and protects nobody.",
            fix="Name the folder of a private run, or a ledger file.",
        )
    return read_ledger(path)


def _ledger_of(run: Path) -> Path:
    from fedethos.runfolder import RunFolder
    from fedethos.simulations.accounts import ledger_path

    folder = RunFolder(run)
    if not folder.local.is_file():
        return folder.ledger
    return ledger_path(folder.parse_job(), base=Path(folder.read_local().base), own=folder.ledger)


def _print_accounts(accounts: list[AccountSpending]) -> None:
    width = max((len(account.account) for account in accounts), default=0)
    for account in accounts:
        neighbours = "added or removed" if account.adjacency == "add-remove" else "replaced"
        typer.echo(
            f"{account.account:<{width}}  epsilon {account.epsilon:.2f} of {account.lifetime_epsilon:g} at delta {account.delta:g}"
            f" (one {account.unit} {neighbours}), {account.left:.2f} left for further plans; plans {account.plans},"
            f" releases {account.reserved}, without a stored reply {account.unanswered}"
        )
    if any(account.simulated for account in accounts):
        typer.echo("Simulated accounts: not a guarantee, and never valid in a deployment.")
    if any(account.plans for account in accounts):
        typer.echo("Further plans, chosen after seeing results, are counted more strictly, so less is left than cap minus epsilon.")
