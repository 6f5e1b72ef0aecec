"""How many records one person takes part with: a bound that counts and their noise rely on."""

from __future__ import annotations

import hashlib

import numpy as np

from fedethos.data.records import Records


def at_most(records: Records, rows: int) -> Records:
    """Keep at most ``rows`` records of each unit.

    The choice depends on that person's own records alone (smallest SHA-256 of inputs and label first), so that nobody's presence changes
    what is kept of somebody else, and not on the order of rows.
    """
    digests = [hashlib.sha256(f"{label}|".encode() + records.content(row)).digest() for row, label in enumerate(records.label.tolist())]
    order = sorted(range(len(records)), key=lambda row: (records.unit[row], digests[row]))
    units = records.unit[order]
    first = np.maximum.accumulate(np.where(np.r_[True, units[1:] != units[:-1]], np.arange(len(order)), 0))
    kept = np.asarray(order, dtype=np.int64)[np.arange(len(order)) - first < rows]
    return records.take(np.sort(kept))
