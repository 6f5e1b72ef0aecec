"""A copy of everything that a site cannot lose: document, key, ledger, record of what left, approvals, history.

While the node runs, too: of each chain the head is copied before the entries, so that the copy's entries reach at least as far as its head,
and a database is copied through SQLite. Every copy is checked before it counts. ``fedethos client doctor --backup`` compares it later.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from fedethos.client import approvals, egress, history
from fedethos.errors import FedethosError
from fedethos.privacy.ledger_chain import head_path, read_only
from fedethos.site import SiteDocument
from fedethos.storage import write_errors


def back_up(site_file: Path, site: SiteDocument, target: Path) -> list[str]:
    """Copy into ``target``, a new or empty folder, with mode 0600; returns the names of what was copied.

    To restore, stop the node and copy everything back over the site's folder.

    Raises
    ------
    FedethosError
        CFG-406 when ``target`` holds something; PRIV-312 or SEC-664 when what is to be copied is damaged; RUN-904 and RUN-905.
    """
    if target.exists() and any(target.iterdir()):
        raise FedethosError(
            "CFG-406",
            "The folder for the back-up is not empty.",
            where=str(target),
            why="An older copy is kept until a newer one is whole.",
            fix="Name a new folder, such as one of today's date.",
        )
    folder, copied = site_file.parent, []
    mask = os.umask(0o077)
    try:
        with write_errors(target):
            target.mkdir(parents=True, exist_ok=True)
            copied += _files(folder, target, site_file.name, site.key, *([site.data.removed] if site.data.removed else []))
            copied += _files(folder, target, *_approvals(folder, site))
            record = str(Path(site.state) / egress.FILE)
            copied += _files(folder, target, record + ".head", record)
            copied += _databases(folder, target, head_path(Path(site.ledger)), Path(site.ledger))
            copied += _databases(folder, target, None, Path(site.state) / history.FILE)
    finally:
        os.umask(mask)
    egress.verify(target / record)
    if (target / site.ledger).exists():
        read_only(target / site.ledger)
    return copied


def _approvals(folder: Path, site: SiteDocument) -> list[str]:
    return [f"{site.state}/{approvals.FOLDER}/{job}.json" for job in approvals.approved_jobs(folder / site.state)]


def _files(folder: Path, target: Path, *names: str) -> list[str]:
    present = [name for name in names if (folder / name).is_file()]
    for name in present:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    return present


def _databases(folder: Path, target: Path, head: Path | None, database: Path) -> list[str]:
    if not (folder / database).is_file():
        return []
    copied = _files(folder, target, str(head)) if head is not None else []
    (target / database).parent.mkdir(parents=True, exist_ok=True)
    source = f"{(folder / database).absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(source, uri=True)) as before, closing(sqlite3.connect(target / database)) as after:
        before.backup(after)
    return [*copied, str(database)]
