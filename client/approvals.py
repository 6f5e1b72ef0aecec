"""Approvals: which job this site runs, with which code and caps, signed with the site's own key.

``fedethos client approve`` writes one; the node looks one up for every request and answers nothing without it. An approval holds for one
job, one build of fedethos and one set of caps: change any of them and it has to be given anew. Files are ``approvals/JOBHASH.json`` in the
site's state folder, signed by ECDSA (P-384, SHA-384) over canonical JSON, so that nobody but the holder of the key adds or edits one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from pydantic import ConfigDict, TypeAdapter, ValidationError

from fedethos.caps import Caps
from fedethos.client.node_key import load_node_key
from fedethos.code_identity import code_sha256
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.site import SiteDocument
from fedethos.storage import JsonValue, canonical_json, canonical_line, write_atomically

FOLDER = "approvals"

_DOMAIN = b"fedethos/approval/v1\n"
_MOST_BYTES = 16_000_000
_CONFIG = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Approval:
    """What a site agreed to.

    Attributes
    ----------
    base_sha256 : str
        Content hash of the base model that was here when it was approved (of a tabular model: of its architecture).
    tensors, frozen : mapping of shapes
        Tensors that travel in each request, and those that travel once; names and shapes, all float32.
    code_sha256 : str
        Of the fedethos that was installed (``fedethos.code_identity``).
    site, account : str
        Name in the job, and ledger account.
    signed_at : str
        UTC, ISO 8601; evidence only.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    job: Job
    job_sha256: str
    base_sha256: str
    tensors: Shapes
    frozen: Shapes
    code_sha256: str
    site: str
    account: str
    caps: Caps
    signed_at: str


_APPROVAL = TypeAdapter(Approval)


def write_approval(
    state: Path, job: Job, site: SiteDocument, key: ec.EllipticCurvePrivateKey, *, base_sha256: str, tensors: Shapes, frozen: Shapes
) -> Path:
    """Sign ``job`` for the code that is installed and the caps of ``site``; returns the file. RUN-904 and RUN-905 as on any write."""
    name, _ = site.as_node()
    approval = Approval(
        job=job,
        job_sha256=job.sha256,
        base_sha256=base_sha256,
        tensors=dict(tensors),
        frozen=dict(frozen),
        code_sha256=code_sha256(),
        site=name,
        account=site.account,
        caps=site.caps,
        signed_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return _write(state, approval, key)


def find_approval(state: Path, job_sha256: str, key: Path, site: SiteDocument) -> Approval:
    """The approval of a job that holds now.

    Raises
    ------
    FedethosError
        SEC-611 when the job was not approved, SEC-612 when the file was not signed with this site's key or was changed, SEC-613 when
        another fedethos is installed than the approved one, SEC-614 when site, account or caps differ. SEC-620 and SEC-621 for the key.
    """
    return _holding(state, job_sha256, load_node_key(key).public_key(), site, code_sha256())


def approvals_that_hold(state: Path, key: Path, site: SiteDocument) -> list[Approval]:
    """All that ``find_approval`` finds now. SEC-620 and SEC-621 for the key."""
    public_key, code = load_node_key(key).public_key(), code_sha256()  # once: it reads every file of the package
    found = []
    for job_sha256 in approved_jobs(state):
        with suppress(FedethosError):  # it will be refused when it is asked for
            found.append(_holding(state, job_sha256, public_key, site, code))
    return found


def _holding(state: Path, job_sha256: str, key: ec.EllipticCurvePublicKey, site: SiteDocument, code: str) -> Approval:
    path = approval_path(state, job_sha256)
    approval = _verified(path, key)
    if approval.code_sha256 != code:
        raise _other_code(approval.code_sha256[:12])
    if approval.job_sha256 != job_sha256 or approval.job.sha256 != job_sha256:
        raise _bad_signature(path)
    if (approval.site, approval.account, approval.caps) != (site.name, site.account, site.caps):
        raise FedethosError(
            "SEC-614",
            "Name, account or caps in site.yaml are not those that the approval was given with.",
            why="Nothing was computed.",
            fix="Review and approve the job again.",
        )
    return approval


def withdraw_approval(state: Path, job_sha256: str) -> None:
    """Take an approval back: from now on the node refuses the job. SEC-611 when there is none."""
    try:
        approval_path(state, job_sha256).unlink()
    except FileNotFoundError:
        raise _not_approved() from None


def approved_jobs(state: Path) -> list[str]:
    """Hashes of the jobs that have an approval file, valid or not."""
    return sorted(path.stem for path in (state / FOLDER).glob("*.json"))


def resign_approvals(state: Path, old: ec.EllipticCurvePublicKey, key: ec.EllipticCurvePrivateKey) -> list[str]:
    """Sign with ``key`` whatever was validly signed with ``old``, when a site exchanges its key; returns the jobs' hashes.

    What ``key`` has signed already stays; what another version of fedethos signed has to be given anew in any case. SEC-612 for an
    approval that neither key signed.
    """
    resigned = []
    for job_sha256 in approved_jobs(state):
        path = approval_path(state, job_sha256)
        if _refusal(path, key.public_key()) == "SEC-612" and _refusal(path, old) != "SEC-613":
            _write(state, _verified(path, old), key)
        resigned.append(job_sha256)
    return resigned


def _refusal(path: Path, key: ec.EllipticCurvePublicKey) -> str | None:
    try:
        _verified(path, key)
    except FedethosError as refusal:
        return refusal.code
    return None


def approval_path(state: Path, job_sha256: str) -> Path:
    """SEC-611 for something that is no hash: it comes from the network and becomes a file name."""
    if len(job_sha256) != 64 or not set(job_sha256) <= set("0123456789abcdef"):
        raise _not_approved()
    return state / FOLDER / f"{job_sha256}.json"


def _write(state: Path, approval: Approval, key: ec.EllipticCurvePrivateKey) -> Path:
    path = approval_path(state, approval.job_sha256)
    for folder in (state, path.parent):  # mode is for the last folder only
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    statement = _as_json(approval)
    signature = base64.b64encode(key.sign(_DOMAIN + canonical_line(statement), ec.ECDSA(SHA384()))).decode()
    write_atomically(path, canonical_json({"approval": statement, "signature": signature}))
    return path


def _verified(path: Path, key: ec.EllipticCurvePublicKey) -> Approval:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except FileNotFoundError:
        raise _not_approved() from None
    except OSError:
        raise _bad_signature(path) from None
    try:
        signed = json.loads(content)
        statement = canonical_line(signed["approval"])
        key.verify(base64.b64decode(signed["signature"], validate=True), _DOMAIN + statement, ec.ECDSA(SHA384()))
    except (ValueError, TypeError, LookupError, RecursionError, FedethosError, InvalidSignature):
        raise _bad_signature(path) from None
    try:
        return _APPROVAL.validate_json(statement)
    except ValidationError:  # honestly signed by a fedethos whose documents have other keys
        raise _other_code("another version") from None


def _as_json(approval: Approval) -> JsonValue:
    value: JsonValue = _APPROVAL.dump_python(approval, mode="json", by_alias=True)
    return value


def _not_approved() -> FedethosError:
    return FedethosError(
        "SEC-611",
        "This site has not approved the job.",
        why="Nothing was computed: a node runs only jobs that a person here has reviewed.",
        fix="Ask the coordinator for the job file, then: fedethos client review JOB, fedethos client approve JOB.",
    )


def _other_code(approved: str) -> FedethosError:
    return FedethosError(
        "SEC-613",
        "Another fedethos is installed than the one this job was approved for.",
        where=f"code {code_sha256()[:12]}, approved {approved}",
        why="An approval says which code may touch the records.",
        fix="After an upgrade that you meant: review and approve the job again. Otherwise find out who changed the installation.",
    )


def _bad_signature(path: Path) -> FedethosError:
    return FedethosError(
        "SEC-612",
        "An approval does not carry a valid signature of this site's key.",
        where=str(path),
        why="It was edited, comes from another site, or the key was exchanged without `fedethos client rotate-key`.",
        fix="Review and approve the job again.",
    )
