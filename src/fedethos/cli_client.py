"""``fedethos client``: what a site's operator does. Paperwork here, the running node in ``cli_client_run.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedethos.cli_client_ask import ask
from fedethos.cli_client_records import backup, doctor, ledger
from fedethos.cli_client_run import add_run_verbs
from fedethos.errors import FedethosError

if TYPE_CHECKING:
    from fedethos.client.model_probe import ModelFacts
    from fedethos.client.review import Review
    from fedethos.job import Job
    from fedethos.site import SiteDocument

client_app = typer.Typer(no_args_is_help=True, help="Run this site's node: set up, review, approve, start, see what left.")

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="The job file, as the coordinator gave it to you.")]
SiteFile = Annotated[Path, typer.Argument(metavar="[SITE]", help="The site's document.", show_default=True)]
AsJson = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything and write nothing.")]

SITE = Path("site.yaml")


@client_app.command(
    epilog="Example: fedethos client init ward --name north --address fl.example.org:443 --data /data/export.csv --ca ca.pem"
)
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for this site.")],
    name: Annotated[str, typer.Option(prompt="Name of this site in the job", help="As the job calls this site.")],
    address: Annotated[str, typer.Option(prompt="Coordinator, HOST:PORT", help="HOST:PORT of the coordinator.")],
    data: Annotated[str, typer.Option(prompt="File with the records", help="The records; relative paths start from FOLDER.")],
    ca: Annotated[str | None, typer.Option(help="PEM file of the authority that signed the coordinator's certificate.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS, for a trial on this machine alone.")] = False,
    proxy: Annotated[str | None, typer.Option(help="Your HTTP proxy, http://HOST:PORT.")] = None,
    account: Annotated[str | None, typer.Option(help="Ledger account of these people; none: the name.")] = None,
    lifetime_epsilon: Annotated[float, typer.Option(prompt="Most epsilon for ever", help="Cap over all jobs, for ever.")] = 8.0,
    per_job_epsilon: Annotated[float | None, typer.Option(help="Cap over all runs of one job; none: the lifetime cap.")] = None,
    hours: Annotated[str | None, typer.Option(help="When training may run, local time, such as 20:00-06:00.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Write site.yaml, this node's key and the split's salt into FOLDER. Asks for what is not given."""
    from fedethos.client.node_key import fingerprint, public_line
    from fedethos.client.site_setup import Answers, set_up_site

    answers = Answers(
        name=name,
        account=account or name,
        address=address,
        data=data,
        lifetime_epsilon=lifetime_epsilon,
        per_job_epsilon=lifetime_epsilon if per_job_epsilon is None else per_job_epsilon,
        ca=None if insecure else ca or "ca.pem",
        insecure=insecure,
        proxy=proxy,
        hours=hours,
    )
    key = set_up_site(folder, answers, dry_run=dry_run)
    if key is None:
        typer.echo(f"{folder / 'site.yaml'} would be written, and a key beside it. Nothing was.")
        return
    typer.echo(f"site     {folder / 'site.yaml'}, readable by you alone: it holds the split's secret salt. Back it up.")
    typer.echo(f"key      {folder / 'node.key'}. Nobody else ever needs it, not even the coordinator.")
    typer.echo(f"public   {public_line(key)}")
    typer.echo(f"check    {fingerprint(key)}")
    typer.echo("Send the line `public` to the coordinator, and compare `check` over the telephone.")
    typer.echo(
        f"Next: {'' if insecure else 'put ' + (ca or 'ca.pem') + ' in place, then '}fedethos client doctor {folder / 'site.yaml'}", err=True
    )


@client_app.command("rotate-key", epilog="Example: fedethos client rotate-key ward/site.yaml")
def rotate_key(
    site_file: SiteFile = SITE,
    activate: Annotated[
        bool, typer.Option("--activate", help="Use the new key, once the coordinator has it. Stop the node first.")
    ] = False,
) -> None:
    """Exchange this node's key: prepare a new one, tell the coordinator, then activate it. Approvals go on to hold."""
    from fedethos.client.node_key import fingerprint, public_line
    from fedethos.client.site_setup import activate_new_key, prepare_new_key
    from fedethos.site import load_site

    site, folder = load_site(site_file), site_file.parent
    if activate:
        resigned = activate_new_key(folder, site)
        typer.echo(
            f"The new key is in use; {len(resigned)} approvals were signed with it. Delete {site.key}.old once the node has connected."
        )
        typer.echo(f"Next: fedethos client start {site_file}", err=True)
        return
    key = prepare_new_key(folder, site)
    typer.echo(f"public   {public_line(key)}")
    typer.echo(f"check    {fingerprint(key)}")
    typer.echo("The old key is still in use. Send the line `public` to the coordinator, and compare `check` over the telephone.")
    typer.echo(f"Next, when the coordinator has it: fedethos client rotate-key {site_file} --activate", err=True)


@client_app.command(epilog="Example: fedethos client review job.yaml ward/site.yaml --html review.html")
def review(
    job_file: JobFile,
    site_file: SiteFile = SITE,
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also write the page as one HTML file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what JOB would run, what would leave, what it costs and how often. Reads no record, runs nothing, sends nothing."""
    reviewed = _review(job_file, site_file)[3]
    if html is not None:
        from fedethos.governance.job_review import job_review
        from fedethos.storage import write_atomically

        write_atomically(html, job_review(reviewed).encode("utf-8", "replace"))
    if as_json:
        import dataclasses

        typer.echo(json.dumps(dataclasses.asdict(reviewed), indent=2))
        return
    _print_review(reviewed)
    if html is not None:
        typer.echo(f"Page: {html}")
    typer.echo(f"Next, if you agree: fedethos client approve {job_file} {site_file}", err=True)


@client_app.command(epilog="Example: fedethos client approve job.yaml ward/site.yaml")
def approve(
    job_file: JobFile,
    site_file: SiteFile = SITE,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for a person who has read the review.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Sign JOB with this site's key, so that the node runs it. Holds for this job, this code and these caps; see also leave."""
    from fedethos.client.approvals import write_approval
    from fedethos.client.node_key import load_node_key
    from fedethos.client.spending import check_protection

    job, site, facts, reviewed = _review(job_file, site_file)
    key = load_node_key(site_file.parent / site.key)
    _print_review(reviewed)
    check_protection(job, site)
    if reviewed.cost is not None and reviewed.cost.refusal is not None:
        raise FedethosError(
            "PRIV-361",
            "This site's privacy budget does not pay for the job, so it cannot be approved.",
            where="caps",
            why=reviewed.cost.refusal,
            fix="Ask the coordinator for a job with a smaller epsilon, or your privacy officer.",
        )
    if dry_run:
        typer.echo("Nothing was signed.")
        return
    if not yes:
        typer.confirm(f"Approve {job.name} for this site?", abort=True)
    path = write_approval(
        site_file.parent / site.state, job, site, key, base_sha256=facts.base_sha256, tensors=facts.tensors, frozen=facts.frozen
    )
    typer.echo(f"Approved: {job.name}, {job.sha256}")
    typer.echo(f"File: {path}")
    typer.echo(f"Next: fedethos client start {site_file}   (a running node sees the approval at once)", err=True)


client_app.command(epilog="Example: fedethos client doctor ward/site.yaml --job job.yaml")(doctor)
client_app.command(epilog="Example: fedethos client ledger ward/site.yaml --json")(ledger)
client_app.command(epilog="Example: fedethos client ask job.yaml adapter ward/site.yaml --suite scenario=secrets.yaml")(ask)
client_app.command(epilog="Example: fedethos client backup /backup/2026-03-02 ward/site.yaml")(backup)
add_run_verbs(client_app)


def _review(job_file: Path, site_file: Path) -> tuple[Job, SiteDocument, ModelFacts, Review]:
    from fedethos.documents import load_job
    from fedethos.site import load_site

    job, site = load_job(job_file), load_site(site_file)
    name, _ = site.as_node()
    typer.echo("Loading the model and measuring one step with made-up records.", err=True)
    from fedethos.client.ledger_of_site import ledger_state
    from fedethos.client.model_probe import probe_model
    from fedethos.client.review import review_job
    from fedethos.client.spending import declared_size

    facts = probe_model(job, site, site_file.parent, declared_size=declared_size(job, name))
    return job, site, facts, review_job(job, site, facts, ledger_state(site_file.parent / site.ledger))


def _print_review(reviewed: Review) -> None:
    from fedethos.client.review_words import headline, parts

    typer.echo(headline(reviewed))
    for warning in reviewed.warnings:
        typer.echo(f"! {warning}")
    for part in parts(reviewed):
        typer.echo(f"\n{part.title}")
        width = max(len(label) for label, _ in part.rows)
        for label, sentence in part.rows:
            typer.echo(f"  {label:<{width}}  {sentence}")
    typer.echo("")
