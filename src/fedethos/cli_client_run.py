"""The verbs of a running node: ``fedethos client start|status|pause|resume|stop|leave``.

Next on the path: ``client/supervisor.py`` is what ``start`` runs; the others talk to it over its control socket.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedethos.site import SiteDocument
    from fedethos.storage import JsonValue

Document = Annotated[Path, typer.Argument(metavar="SITE", help="The site's document.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]

_SITE = Path("site.yaml")


def start(
    site: Document = _SITE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the node would do; connect to nobody.")] = False,
) -> None:
    """Run this site's node: connect to the coordinator, answer what was approved, until it is stopped (Ctrl-C, SIGTERM)."""
    from fedethos.site import load_site

    document = load_site(site)
    if dry_run:
        _print_plan(site, document)
        return
    from fedethos.client.supervisor import Supervisor

    supervisor = Supervisor(site.resolve(), document, say=lambda text: typer.echo(text, err=True))

    def stop(number: int, frame: FrameType | None) -> None:
        supervisor.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    supervisor.run()


def status(site: Document = _SITE, as_json: AsJson = False) -> None:
    """What the running node is doing, and whether it is connected."""
    answer = _call(site, "status")
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(f"site       {answer['site']}, fedethos {answer['version']}")
    typer.echo(f"state      {answer['state']}")
    typer.echo(f"connection {'to' if answer['connected'] else 'NONE to'} {answer['coordinator']}")
    if isinstance(problem := answer["problem"], Mapping):
        typer.echo(f"problem    {problem['code']} {problem['what']} {problem['fix']}")
    if isinstance(request := answer["request"], Mapping):
        typer.echo(f"request    {request['type']} of round {request['round']}, run {request['run']}")
    typer.echo(f"answered   {answer['answered']} requests since it started; refused {answer['refused']}")
    if answer["told"] is not None:
        typer.echo(f"told       the coordinator refused the last reply: {answer['told']} (docs/errors.md)")
    if answer["quarantined"]:
        typer.echo("           too many were refused: it asks this site no more in that run")
    typer.echo("Next: what left this site and what it cost: fedethos client ledger")


def pause(site: Document = _SITE) -> None:
    """Take no new request; what is being computed is finished and sent. The coordinator sees this site as late, not as gone."""
    typer.echo(f"{_call(site, 'pause')['state']}. Go on with: fedethos client resume")


def resume(site: Document = _SITE) -> None:
    """Take requests again after a pause."""
    typer.echo(str(_call(site, "resume")["state"]))


def stop(
    site: Document = _SITE,
    now: Annotated[bool, typer.Option("--now", help="Give up what is being computed; the next start takes it up again.")] = False,
) -> None:
    """End the running node, after the reply that is being computed."""
    _call(site, "stop", {"now": now})
    typer.echo("stopping. Start it again with: fedethos client start")


def leave(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Hash of the job, or its beginning; default: every job.")] = None,
    site: Annotated[Path, typer.Option("--site", help="The site's document.")] = _SITE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which approvals would be withdrawn.")] = False,
) -> None:
    """Withdraw approvals: from the next request on the node refuses these jobs. What was spent stays spent, what was sent is sent."""
    from fedethos.client.approvals import approved_jobs, withdraw_approval
    from fedethos.errors import FedethosError
    from fedethos.site import load_site

    state = site.parent / load_site(site).state
    chosen = [one for one in approved_jobs(state) if job is None or one.startswith(job)]
    if not chosen:
        raise FedethosError("SEC-611", "This site has approved no such job.", where=str(state), fix="See: fedethos client start --dry-run")
    for one in chosen:
        if not dry_run:
            withdraw_approval(state, one)
        typer.echo(f"{'would withdraw' if dry_run else 'withdrew'} the approval of job {one[:12]}")


def add_run_verbs(app: typer.Typer) -> None:
    """Register the verbs on the sub-command ``client``."""
    for verb in (start, status, pause, resume, stop):
        app.command(epilog=f"Example: fedethos client {verb.__name__} ward/site.yaml")(verb)
    app.command(epilog="Example: fedethos client leave 3f2a9c --site ward/site.yaml")(leave)


def _call(site: Path, method: str, argument: Mapping[str, JsonValue] | None = None) -> dict[str, JsonValue]:
    from fedethos.control.calling import call_control
    from fedethos.site import load_site

    return call_control(site.parent / load_site(site).state / "control.sock", method, argument or {})


def _print_plan(path: Path, site: SiteDocument) -> None:
    from fedethos.client.approvals import approved_jobs, find_approval
    from fedethos.errors import FedethosError

    name, coordinator = site.as_node()
    state, key = path.parent / site.state, path.parent / site.key
    typer.echo(f"site       {name}, account {site.account}")
    typer.echo(f"connects   to {coordinator.address}{' WITHOUT TLS' if coordinator.insecure else ''}; nothing listens on the network")
    typer.echo(f"trains     on {site.device}, {site.hours or 'at any hour'}")
    jobs = approved_jobs(state)
    for one in jobs:
        try:
            approval = find_approval(state, one, key, site)
            typer.echo(f"answers    job {one[:12]} ({approval.job.name}), approved {approval.signed_at}")
        except FedethosError as refusal:
            typer.echo(f"refuses    job {one[:12]}: {refusal.code} {refusal.what}")
    if not jobs:
        typer.echo("answers    no job: none is approved. Next: fedethos client review JOB")
    typer.echo("Nothing was started. Run it without --dry-run.")
