"""A new site's paperwork: site.yaml with its own salt, and the node's key; and a new key for an old site.

Next on the path: ``client/doctor.py`` checks what was written.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from fedethos.client.approvals import resign_approvals
from fedethos.client.node_key import load_node_key, write_node_key
from fedethos.errors import FedethosError
from fedethos.site import SiteDocument, load_site
from fedethos.storage import sync_folder, write_atomically, write_errors

DOCUMENT = "site.yaml"

_TEMPLATE = """\
# What this site decides for itself. It stays here and is never sent.
# What each key means: fedethos config explain --document site
schema: fedethos/site/v1

# As the job calls this site (federation.sites).
name: {name}

# The ledger account of these people. Keep it when the file is exported anew.
account: {account}

coordinator:
  address: {address}
  ca: {ca}
  insecure: {insecure}
  proxy: {proxy}

key: node.key

data:
  path: {data}
  # Raw value to declared category, per column: {{sex: {{"1": Male, "0": Female}}}}
  map: {{}}
  # A file with people whose records are taken out, one a line.
  removed: null

# What may be spent, whatever a coordinator asks for. Later they can only be tightened.
caps:
  lifetime_epsilon: {lifetime_epsilon}
  per_job_epsilon: {per_job_epsilon}
  delta: {delta}
  rounds: {rounds}

# When training may run, local time, such as 20:00-06:00; null: always.
hours: {hours}

# auto (a GPU where there is one), cpu, or cuda:N
device: auto

# true lets jobs without differential privacy run: made-up records only.
allow_unprotected: false

# Secret, made for this site. Never change it: people would move between training and test.
split_salt: {salt}
"""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What a person says about a new site. Paths as in site.yaml, from its folder."""

    name: str
    account: str
    address: str
    data: str
    lifetime_epsilon: float
    per_job_epsilon: float
    ca: str | None = None
    insecure: bool = False
    proxy: str | None = None
    hours: str | None = None
    delta: float = 1.0e-5
    rounds: int = 100


def set_up_site(folder: Path, answers: Answers, *, dry_run: bool = False) -> ec.EllipticCurvePrivateKey | None:
    """Write ``site.yaml`` and the key into ``folder``, both with mode 0600; returns the key, None after a dry run.

    Raises
    ------
    FedethosError
        CFG-405 when there is a site.yaml already; CFG-… when an answer is not what site.yaml may say, before anything is written.
    """
    file = folder / DOCUMENT
    if file.exists():
        raise FedethosError(
            "CFG-405",
            "There is a site.yaml already.",
            where=str(file),
            why="Its split salt and account must never change by accident.",
            fix="Edit that file, or name another folder.",
        )
    values = {**vars(answers), "salt": secrets.token_hex(16)}
    text = _TEMPLATE.format(**{name: json.dumps(value, ensure_ascii=False) for name, value in values.items()})
    with tempfile.TemporaryDirectory() as draft:
        (Path(draft) / DOCUMENT).write_text(text, "utf-8")
        site = load_site(Path(draft) / DOCUMENT)
    if dry_run:
        return None
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = write_node_key(folder / site.key)
    mask = os.umask(0o077)
    try:
        write_atomically(file, text.encode())
    finally:
        os.umask(mask)
    return key


def prepare_new_key(folder: Path, site: SiteDocument) -> ec.EllipticCurvePrivateKey:
    """A key beside the one in use, to be sent to the coordinator first; the same one when it was prepared before."""
    new = _new_key_path(folder / site.key)
    return load_node_key(new) if new.exists() else write_node_key(new)


def activate_new_key(folder: Path, site: SiteDocument) -> list[str]:
    """Put the prepared key in the place of the old one and sign the approvals with it; returns the jobs' hashes.

    The old key stays as ``NAME.old`` until the next exchange. May be repeated after an interruption. The node must not be running.

    Raises
    ------
    FedethosError
        SEC-623 when no key was prepared; SEC-612 for an approval that neither key signed.
    """
    path = folder / site.key
    new = _new_key_path(path)
    if not new.exists():
        raise FedethosError(
            "SEC-623",
            "No new key was prepared.",
            where=str(new),
            fix="First: fedethos client rotate-key, and send the public line to the coordinator.",
        )
    key = load_node_key(new)
    resigned = resign_approvals(folder / site.state, load_node_key(path).public_key(), key)
    with write_errors(path):
        old = path.with_name(path.name + ".old")
        old.unlink(missing_ok=True)
        old.hardlink_to(path)
        new.replace(path)  # at every moment there is a key
        sync_folder(path.parent)
    return resigned


def _new_key_path(path: Path) -> Path:
    return path.with_name(path.name + ".new")
