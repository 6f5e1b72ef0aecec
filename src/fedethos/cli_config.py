"""``fedethos config``: check a job, explain keys of documents, print schemas. Results to stdout, hints where they do not disturb a pipe."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

config_app = typer.Typer(no_args_is_help=True, help="Check a job document, explain a document's keys, print its JSON Schema.")


class DocumentName(Enum):
    """The documents that a person writes."""

    JOB = "job"
    SITE = "site"
    SERVER = "server"
    TRUST = "trust"


_CHECKED_BY = {
    DocumentName.JOB: "fedethos config check FILE --set KEY=VALUE",
    DocumentName.SITE: "fedethos client doctor SITE",
    DocumentName.SERVER: "fedethos server doctor",
    DocumentName.TRUST: "fedethos server doctor",
}

Which = Annotated[
    DocumentName,
    typer.Option("--document", help="job.yaml of the federation, site.yaml of a site, server.yaml or trust.yaml of the coordinator."),
]

Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key, for example privacy.epsilon=3.")]


@config_app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A job.yaml.")],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the resolved job and its hash as JSON.")] = False,
) -> None:
    """Read FILE as a run would, and say what it resolves to."""
    import json
    import shlex

    from fedethos.documents import load_job

    job = load_job(file, overrides or ())
    if as_json:
        typer.echo(json.dumps({"ok": True, "sha256": job.sha256, "job": job.model_dump(mode="json", by_alias=True)}, ensure_ascii=False))
        return
    privacy = job.privacy
    protection = (
        "none: sites send exact counts"
        if privacy.mode == "none" or privacy.epsilon is None
        else f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g} per site and {job.unit} ({privacy.adjacency})"
    )
    typer.echo(f"ok           {job.name}")
    typer.echo(f"sha256       {job.sha256}")
    typer.echo(f"privacy      {protection}")
    typer.echo(f"federation   {job.federation.rounds} rounds, {job.aggregation} aggregation, at least {job.federation.min_sites} sites")
    changes = [part for override in overrides or () for part in ("--set", override)]
    typer.echo(f"Next: {shlex.join(['fedethos', 'simulate', str(file), *changes])}")


@config_app.command()
def explain(
    key: Annotated[str | None, typer.Argument(metavar="[KEY]", help="A key such as privacy.epsilon; none: all keys.")] = None,
    document: Which = DocumentName.JOB,
) -> None:
    """Say what a key of a document means, what it may be and what it is by default."""
    from fedethos.schemas import explain as explain_key

    typer.echo(explain_key(_model(document), key))
    which = "" if document is DocumentName.JOB else f" --document {document.value}"
    typer.echo(f"Next: {_CHECKED_BY[document]}" if key else f"Next: fedethos config explain KEY{which}")


@config_app.command()
def schema(document: Which = DocumentName.JOB) -> None:
    """Print the JSON Schema of a document, for editors and other tools."""
    import json

    from fedethos.schemas import schema as json_schema

    typer.echo(json.dumps(json_schema(_model(document)), indent=2, ensure_ascii=False))
    typer.echo(f"Next: save this as {document.value}.schema.json and name it in your editor's YAML settings.", err=True)


def _model(document: DocumentName) -> type[BaseModel]:
    from fedethos.job import Job
    from fedethos.server_document import ServerDocument
    from fedethos.site import SiteDocument
    from fedethos.trust import Trust

    models: dict[DocumentName, type[BaseModel]] = {
        DocumentName.JOB: Job,
        DocumentName.SITE: SiteDocument,
        DocumentName.SERVER: ServerDocument,
        DocumentName.TRUST: Trust,
    }
    return models[document]
