"""Do this site's records and models fit the jobs that it approved? Problems are counted, no value is shown."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from fedethos.client.approvals import approved_jobs, find_approval
from fedethos.client.doctor import Check
from fedethos.client.spending import check_protection, declared_size
from fedethos.data.contract import apply_contract
from fedethos.data.readers import read_table
from fedethos.data.removal import read_removed, without_removed
from fedethos.data.split import split_records
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.models.assets import resolve
from fedethos.models.content import check_folder, content_hash
from fedethos.site import SiteDocument


def check_jobs(folder: Path, site: SiteDocument, job: Job | None) -> dict[str, Callable[[], Iterator[Check]]]:
    """For ``job``, or else for every approved one. ``folder``: where relative paths in site.yaml start from."""
    checks: dict[str, Callable[[], Iterator[Check]]] = {"records": lambda: _file(folder, site)}
    if job is not None:
        return {**checks, job.name: lambda: _fits(folder, site, job, None)}
    jobs = approved_jobs(folder / site.state)
    if not jobs:
        return {**checks, "jobs": _none_approved}
    return {**checks, **{f"job {sha256[:12]}": _of_approval(folder, site, sha256) for sha256 in jobs}}


def _of_approval(folder: Path, site: SiteDocument, sha256: str) -> Callable[[], Iterator[Check]]:
    def check() -> Iterator[Check]:
        approval = find_approval(folder / site.state, sha256, folder / site.key, site)
        yield Check(approval.job.name, "ok", f"approved on {approval.signed_at}, for this code and these caps")
        yield from _fits(folder, site, approval.job, approval.base_sha256)

    return check


def _none_approved() -> Iterator[Check]:
    yield Check(
        "jobs", "warn", "none is approved, so the node will refuse everything", "fedethos client review JOB, fedethos client approve JOB"
    )


def _file(folder: Path, site: SiteDocument) -> Iterator[Check]:
    if site.data.path.startswith("builtin:"):
        yield Check("records", "ok", "a builtin data set")
        return
    path = folder / Path(site.data.path).expanduser()
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        raise FedethosError("DATA-101", "The file was not found.", where="data.path", fix="Correct data.path in site.yaml.") from None
    if mode & 0o007:
        yield Check("records", "warn", "everybody on this machine may read the records", "chmod o= FILE")
    yield Check("records", "ok", "the file is there")


def _fits(folder: Path, site: SiteDocument, job: Job, base_sha256: str | None) -> Iterator[Check]:
    name, _ = site.as_node()
    check_protection(job, site)
    declared = declared_size(job, name)
    contract = site.contract(job.data)
    records = apply_contract(read_table(contract, base=folder), contract, filters={one.table: one.filter for one in job.scenarios})
    everybody = records.units
    if site.data.removed is not None:
        removed = read_removed(folder / site.data.removed)
        records = without_removed(records, removed, by_person=job.data.person_id is not None)
    training = split_records(records, contract.split, salt=site.split_salt, limit=contract.limit)["train"].units
    yield Check(job.name, "ok", f"records fit the job: {everybody:,} {job.unit}s here, {everybody - records.units:,} taken out")
    if not 0.5 <= training / declared <= 2.0:
        fix = "Agree with the coordinator on a size nearer to the truth: noise and weight follow the declared one."
        yield Check(job.name, "warn", f"{training:,} {job.unit}s train, and the job declares {declared:,}", fix)
    yield from _model(folder, site, job, base_sha256)


def _model(folder: Path, site: SiteDocument, job: Job, base_sha256: str | None) -> Iterator[Check]:
    if job.task == "tabular-classification":
        return
    base = resolve(site.local(job).model.path, base=folder)
    check_folder(base)
    found = content_hash(base)
    for wanted in (job.model.sha256, base_sha256):
        if wanted is not None and found != wanted:
            raise FedethosError(
                "SEC-601",
                "The base model's content is not the approved one.",
                where="model",
                why="It could answer differently, or not be what was reviewed.",
                fix="Bring the model again, or review and approve the job again.",
            )
    yield Check(job.name, "ok", f"the base model is the approved one, {found[:12]}")
