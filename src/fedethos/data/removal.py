"""People whose records are taken out of a site's table, before the split and before anything is counted or trained.

The list has one person a line: the identifier as it stands in the column ``data.person_id``, or ``sha256:`` and 64 hex digits, the hash
that ``identity_of`` gives, so that the list itself need not name anybody. Empty lines and lines that begin with ``#`` are skipped.

The person hash of the split depends on each person alone, so nobody else moves between training and test.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np

from fedethos.data.records import Records
from fedethos.errors import FedethosError

_HASHED = re.compile(r"sha256:([0-9a-f]{64})")


def identity_of(person: str) -> bytes:
    """SHA-256 of a person as in ``Records.identity``, 32 bytes."""
    return hashlib.sha256(json.dumps(person).encode()).digest()


def read_removed(path: Path) -> frozenset[bytes]:
    """Identities (32 bytes each) on the list. DATA-125 when it cannot be read: then nobody's records are used."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FedethosError(
            "DATA-125",
            f"The list of people to take out cannot be read ({type(error).__name__}).",
            where="data.removed",
            why="Their records would be used again.",
            fix="Put the file back: UTF-8 text, one person a line.",
        ) from None
    people = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return frozenset(bytes.fromhex(match[1]) if (match := _HASHED.fullmatch(one)) else identity_of(one) for one in people)


def without_removed(records: Records, removed: frozenset[bytes], *, by_person: bool) -> Records:
    """``records`` of everybody else.

    Parameters
    ----------
    by_person : bool
        Whether the job maps ``data.person_id``. Without it a record belongs to nobody, and a list of people is refused.

    Raises
    ------
    FedethosError
        DATA-126 when people are listed and the job maps no person; DATA-127 when nobody is left.
    """
    if not removed:
        return records
    if not by_person:
        raise FedethosError(
            "DATA-126",
            "People are to be taken out, but the job does not say which column names the person.",
            where="data.person_id",
            why="Without it their records cannot be found.",
            fix="Take the rows out of the export itself, or ask for a job that maps data.person_id.",
        )
    kept = np.array([row.tobytes() not in removed for row in records.identity], dtype=bool)
    if not kept.any():
        raise FedethosError("DATA-127", "The list of people to take out names everybody.", where="data.removed", fix="Check the list.")
    return records.take(np.flatnonzero(kept))
