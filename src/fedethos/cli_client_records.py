"""``fedethos client doctor`` and ``ledger``: is this site ready, and what left it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedethos.client.doctor import Check
    from fedethos.client.egress import Line
    from fedethos.privacy.statement import AccountSpending

SiteFile = Annotated[Path, typer.Argument(metavar="[SITE]", help="The site's document.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]

_MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


def doctor(
    site_file: SiteFile = Path("site.yaml"),
    job_file: Annotated[
        Path | None, typer.Option("--job", metavar="JOB", help="Check the records for this job; none: for approved ones.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Do not contact the coordinator.")] = False,
    backup: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Compare the copy of the ledger in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check keys, certificate, network, clock, disk, ledger, records and models, and say what to fix. Changes nothing."""
    from fedethos.client.doctor import check_paperwork, run_checks
    from fedethos.client.doctor_jobs import check_jobs
    from fedethos.client.doctor_network import check_network
    from fedethos.documents import load_job
    from fedethos.errors import FedethosError
    from fedethos.site import load_site

    site = load_site(site_file)
    _, coordinator = site.as_node()
    checks = check_paperwork(site_file, site, backup=backup)
    if not offline:
        checks |= check_network(site_file.parent, coordinator)
    checks |= check_jobs(site_file.parent, site, None if job_file is None else load_job(job_file))
    found = []
    for check in run_checks(checks):
        found.append(check)
        if not as_json:
            _print_check(check)
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(check) for check in found], indent=2))
    broken = [check for check in found if check.state == "fail"]
    if broken:
        typer.echo(f"{len(broken)} to fix, the first one first.", err=True)
        raise typer.Exit(FedethosError(broken[0].code, "").exit_code)
    typer.echo(f"Next: fedethos client review JOB {site_file}, or fedethos client start {site_file}", err=True)


def ledger(site_file: SiteFile = Path("site.yaml"), as_json: AsJson = False) -> None:
    """Print what left this site, message by message, and what was spent, after checking that no line was changed or is missing."""
    from fedethos.client import egress
    from fedethos.client.ledger_of_site import check_ledger_remembers, ledger_state
    from fedethos.privacy.statement import spending
    from fedethos.site import load_site

    site, folder = load_site(site_file), site_file.parent
    path = folder / site.state / egress.FILE
    lines, head, state = egress.read(path), egress.verify(path), ledger_state(folder / site.ledger)
    check_ledger_remembers(lines, state)
    accounts = spending(state)
    if as_json:
        body = {
            "head": dataclasses.asdict(head),
            "sent": [line.model_dump(mode="json") for line in lines],
            "accounts": [dataclasses.asdict(account) for account in accounts],
        }
        typer.echo(json.dumps(body, indent=2))
        return
    _print_sent(lines)
    _print_spent(accounts)
    typer.echo(f"{head.count} messages, none changed or missing. Head: {head.hash}")
    typer.echo("Keep the head somewhere else: it shows later that nothing before it was touched.")
    typer.echo(f"Next: fedethos privacy statement {folder / site.ledger}", err=True)


def backup(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder, best on another disk.")],
    site_file: SiteFile = Path("site.yaml"),
) -> None:
    """Copy what this site cannot lose into FOLDER, while the node runs or not: document, key, ledger, record, approvals."""
    from fedethos.client.backup import back_up
    from fedethos.site import load_site

    copied = back_up(site_file, load_site(site_file), folder)
    typer.echo(f"{len(copied)} files copied and checked: {', '.join(name for name in copied if '/' not in name)} and the state folder.")
    typer.echo("The site's key and salt are among them: keep the copy as safe as the original.")
    typer.echo(f"Next: fedethos client doctor {site_file} --offline --backup {folder}", err=True)


def _print_check(check: Check) -> None:
    typer.echo(f"{_MARKS[check.state]}  {check.name:<12}  {check.said}")
    if check.fix and check.state != "ok":
        typer.echo(f"{'':<20}fix: {check.fix}")


def _print_sent(lines: list[Line]) -> None:
    from fedethos.wording import size

    if not lines:
        typer.echo("Nothing has left this site.")
        return
    typer.echo("What left")
    width = max(len(line.sent.run) for line in lines)
    for line in lines:
        sent = line.sent
        what = f"refused, {sent.refused}" if sent.refused else f"{len(sent.shapes)} tensors or tables" if sent.shapes else "a statement"
        cost = "" if sent.epsilon_after is None else f"  epsilon after it {sent.epsilon_after:.2f}"
        where = f"{sent.run:<{width}}  round {sent.round:<4} {sent.message_type:<12}"
        typer.echo(f"  {line.time[:19]}Z  {where} {size(sent.bytes):>9}  {what}{cost}")


def _print_spent(accounts: list[AccountSpending]) -> None:
    typer.echo("\nWhat was spent")
    for account in accounts:
        typer.echo(
            f"  {account.account}: epsilon {account.epsilon:.2f} of {account.lifetime_epsilon:g} at delta {account.delta:g}"
            f" per {account.unit}, {account.left:.2f} left for further plans; {account.plans} runs, {account.reserved} releases"
        )
    if not accounts:
        typer.echo("  nothing: no job with differential privacy has run here.")
    typer.echo("")
