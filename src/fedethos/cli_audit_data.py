"""``fedethos audit-data``: what a site's own records look like before training. Nothing leaves: basis ``node-only``."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedethos.errors import FedethosError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fedethos.fairness.data_audit.audit import DataAudit
    from fedethos.fairness.data_audit.findings import Finding
    from fedethos.fairness.data_audit.table import AuditTable
    from fedethos.job import Job
    from fedethos.site import SiteDocument
    from fedethos.storage import JsonValue

_MARKS = {"hard": "!!", "look": "! ", "note": "  "}


def audit_data(
    job_file: Annotated[Path, typer.Argument(metavar="JOB", help="The job whose data contract says how to read the records.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the job.")] = None,
    site: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="The site's own document: its file, values and salt.")] = None,
    data: Annotated[Path | None, typer.Option(metavar="PATH", help="Audit this file instead of the one that the documents name.")] = None,
    reference: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="Shares of the population it should look like.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write a page with all numbers, readable by you only.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 3 when training rows are copied into validation or test.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all numbers as JSON.")] = False,
) -> None:
    """Audit the records of a job at this site: groups, base rates, proxies, copies, label noise, missing values, identifiers."""
    from fedethos.documents import load_job
    from fedethos.fairness.data_audit.audit import audit_data as measure
    from fedethos.fairness.data_audit.findings import findings
    from fedethos.privacy.randomness import keyed_generator
    from fedethos.reference import load_reference
    from fedethos.site import load_site

    job = load_job(job_file, overrides or [])
    own = None if site is None else load_site(site)
    population = None if reference is None else load_reference(reference, job.data.sensitive)
    typer.echo("Reading the records.", err=True)
    table = _table(job, own, data, base=(site or job_file).parent)
    typer.echo("Measuring.", err=True)
    audit = measure(
        table,
        reference={} if population is None else population.shares,
        min_people=job.privacy.metrics.min_group_size,
        rng=keyed_generator(job.simulation.seed, "data-audit"),
    )
    found = findings(audit)
    if out is not None:
        _write_page(out, job, own, audit, found, None if population is None else population.source)
    if as_json:
        _print_json(audit, found)
    else:
        _print(audit, found, out)
    if strict and any(finding.severity == "hard" for finding in found):
        raise FedethosError(
            "DATA-160",
            "Rows of validation or test are copies of training rows.",
            where="data.path",
            why="The model would be tested on what it was trained on, and look better than it is.",
            fix="Remove copies before the export, or give copies of one person the same data.person_id.",
        )


def _table(job: Job, own: SiteDocument | None, path: Path | None, *, base: Path) -> AuditTable:
    """The records, read as training reads them, with the split that training would draw."""
    from fedethos.data.contract import apply_contract
    from fedethos.data.readers import read_table
    from fedethos.data.split import split_records
    from fedethos.fairness.data_audit.table import audit_table, row_splits
    from fedethos.simulations.virtual_sites import site_records

    contract = job.data if own is None else own.contract(job.data)
    if path is not None:
        contract = contract.model_copy(update={"path": str(path.absolute())})
    frame = read_table(contract, base=base)
    plan = job.simulation.partition
    records = apply_contract(frame, contract, keep=plan.by if own is None and plan.kind == "by-column" else None)
    if own is None:
        sites = list(site_records(job.model_copy(update={"data": contract}), base, records).values())
    else:
        sites = [split_records(records, contract.split, salt=own.split_salt, limit=contract.limit)]
    return audit_table(frame, contract, records, row_splits(records, sites))


def _write_page(path: Path, job: Job, own: SiteDocument | None, audit: DataAudit, found: Sequence[Finding], reference: str | None) -> None:
    from fedethos.governance.data_report import data_report
    from fedethos.storage import write_atomically

    source = "All virtual sites of the job together." if own is None else f"The site's own records, account {own.account}."
    page = data_report(job.name, source, audit, found, reference=reference)
    mask = os.umask(0o077)
    try:
        write_atomically(path, page.encode("utf-8", "replace"))
    finally:
        os.umask(mask)


def _print_json(audit: DataAudit, found: Sequence[Finding]) -> None:
    from fedethos.storage import canonical_json

    body: dict[str, JsonValue] = {
        "basis": "node-only",
        "findings": [dataclasses.asdict(finding) for finding in found],
        "audit": dataclasses.asdict(audit),
    }
    typer.echo(canonical_json(body).decode(), nl=False)


def _print(audit: DataAudit, found: Sequence[Finding], out: Path | None) -> None:
    from fedethos.governance.data_report import BANNER, headline, said

    typer.echo(headline(audit, found))
    for finding in found:
        typer.echo(f"{_MARKS[finding.severity]} {finding.about}: {finding.sentence}")
    for attribute, part in audit.attributes.items():
        typer.echo(f"\n{attribute}: rows with the label {audit.favorable}")
        groups = [group for group in part.base_rate.groups if group.people]
        width = max(len(group.group) for group in groups)
        for group in groups:
            typer.echo(f"  {group.group:<{width}}  {group.people:>8,} people  {said(group.rate)}{'  small' if group.small else ''}")
    typer.echo(f"\n{BANNER.replace('This page', 'This')}")
    typer.echo(f"Page: {out}" if out is not None else "Next: add --out data-audit.html for the page with all tables.")
