"""``fedethos server``: the coordinator. Verbs other than ``init``, ``doctor`` and ``start`` talk to it over its control socket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedethos.storage import JsonValue

server_app = typer.Typer(no_args_is_help=True, help="Run the coordinator: start it, submit jobs, see who is there.")

Document = Annotated[Path, typer.Option("--server", metavar="FILE", help="The coordinator's server.yaml.")]
Run = Annotated[str | None, typer.Argument(metavar="[RUN]", help="Name of a run; needed when several fit.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]

_DEFAULT = Path("server.yaml")


@server_app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where server.yaml and trust.yaml go.")],
    address: Annotated[str, typer.Option(help="Where the gateway listens, host:port.")] = "0.0.0.0:9443",
    certificate: Annotated[str, typer.Option(help="TLS certificate (PEM) from your authority, relative to FOLDER.")] = "server.pem",
    key: Annotated[str, typer.Option(help="Its private key (PEM), relative to FOLDER.")] = "server.key",
) -> None:
    """Write server.yaml and an empty trust.yaml."""
    from fedethos.server_document import write_server

    written = write_server(folder, address=address, certificate=certificate, key=key)
    typer.echo(str(written))
    typer.echo(f"Next: add each site's key to trust.yaml, then fedethos server doctor --server {written}", err=True)


@server_app.command()
def doctor(document: Document = _DEFAULT, as_json: AsJson = False) -> None:
    """Check certificate, keys, disk and address before a start; exit code 8 when something has to be mended."""
    import dataclasses
    import json

    from fedethos.server.doctor import examine
    from fedethos.server_document import load_server

    findings = examine(load_server(document))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    for finding in findings if not as_json else ():
        typer.echo(f"{ {True: 'ok  ', None: 'note', False: 'FIX '}[finding.ok] }  {finding.check:<20}  {finding.what}")
        if finding.fix and not finding.ok:
            typer.echo(f"{'':28}{finding.fix}")
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(8)
    if not as_json:
        typer.echo(f"Next: fedethos server start --server {document}")


@server_app.command()
def start(document: Document = _DEFAULT) -> None:
    """Start the coordinator and stay in the foreground, as systemd and Docker want it. SIGTERM stops it; its runs are kept.

    Example: fedethos server start --server /etc/fedethos/server.yaml
    """
    from fedethos.server.serving import serve
    from fedethos.server_document import load_server

    def render(folder: Path) -> None:
        from fedethos.governance.report import render_report  # drawing costs memory that a waiting coordinator need not hold

        render_report(folder)

    server = load_server(document)

    def ready(sites: list[str]) -> None:
        known = f"It answers {len(sites)} sites: {', '.join(sites)}." if sites else "trust.yaml has no site with a valid key yet."
        typer.echo(f"The coordinator listens on {server.document.address}. {known}", err=True)
        typer.echo(f"State: {server.state}. Next, in another terminal: fedethos server submit JOB --server {document}", err=True)

    serve(server, finished=render, ready=ready)
    typer.echo("The coordinator has stopped. Its runs go on at the next start.", err=True)


@server_app.command()
def submit(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="The job that the sites approve, a YAML file.")],
    document: Document = _DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Put a job into the queue. Each site has to approve the same file before it takes part.

    Example: fedethos server submit job.yaml --server /etc/fedethos/server.yaml
    """
    import json

    from fedethos.documents import load_job

    load_job(job)  # refusals with the line of the file, before anything is sent
    answer = _call(document, "submit", {"job": str(job.resolve())})
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(str(answer["run"]))
    typer.echo(f"job sha256 {answer['job_sha256']}", err=True)
    if isinstance(without := answer["without_key"], list) and without:
        typer.echo(f"No key in trust.yaml yet: {', '.join(map(str, without))}. The run waits for them.", err=True)
    typer.echo("Next: give the job file to every site (fedethos client review JOB), then fedethos server status --watch", err=True)


@server_app.command()
def status(
    document: Document = _DEFAULT,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it live until Ctrl-C.")] = False,
) -> None:
    """Show sites, runs, rounds, refusals and deadlines.

    Example: fedethos server status --watch --server /etc/fedethos/server.yaml
    """
    import json

    from fedethos.server_view import print_status, watch_status

    if watch:
        watch_status(lambda: _call(document, "status", {}))
    elif as_json:
        typer.echo(json.dumps(_call(document, "status", {}), indent=2))
    else:
        print_status(_call(document, "status", {}))


@server_app.command()
def pause(run: Run = None, document: Document = _DEFAULT) -> None:
    """Stop a run after its last finished round, until `resume`."""
    answer = _call(document, "pause", _named(run))
    typer.echo(f"{answer['run']} is paused.\nNext: fedethos server resume {answer['run']}")


@server_app.command()
def resume(run: Run = None, document: Document = _DEFAULT) -> None:
    """Continue a run that was paused or failed, after its last finished round."""
    typer.echo(f"{_call(document, 'resume', _named(run))['run']} continues.\nNext: fedethos server status --watch")


@server_app.command()
def stop(run: Run = None, document: Document = _DEFAULT) -> None:
    """With RUN: end that run for good. Without: stop the coordinator; its runs go on at the next start."""
    answer = _call(document, "stop", _named(run))
    typer.echo(f"{answer['run']} has ended." if run else "The coordinator stops.")


def _named(run: str | None) -> dict[str, JsonValue]:
    return {} if run is None else {"run": run}


def _call(document: Path, method: str, argument: dict[str, JsonValue]) -> dict[str, JsonValue]:
    from fedethos.control.calling import call_control
    from fedethos.server.places import Places
    from fedethos.server_document import load_server

    return call_control(Places(load_server(document).state).socket, method, argument, timeout=30.0)
