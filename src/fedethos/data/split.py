"""Who trains and who is measured: a keyed hash of the person decides, so that the answer is the same for ever.

u = HMAC-SHA256(salt, "split" + identity) read as a number in [0, 1): train below ``train``, validation below ``train + validation``,
test above. A second hash with another purpose decides ``limit``. Neither depends on the other people, so adding rows or
changing their order moves nobody, and a larger ``limit`` only adds people. A new salt, or where no person is mapped a new
column, draws the splits afresh. Next: ``fedethos.data.tokens``.
"""

from __future__ import annotations

import hmac
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fedethos import job_data
from fedethos.data.records import Records
from fedethos.errors import FedethosError

SplitName = Literal["train", "validation", "test"]


def split_records(records: Records, split: job_data.Split, *, salt: str, limit: float | None) -> dict[SplitName, Records]:
    """Train, validation and test records; no person (identity) is in two of them.

    Parameters
    ----------
    salt : str
        One per site, fixed for ever and secret: with it, anybody who knows a person's identifier knows the person's split.
    limit : float or None
        Share of the people to use.

    Raises
    ------
    FedethosError
        DATA-131 when a split holds nobody.
    """
    used = np.full(len(records), True) if limit is None else _unit_interval(records.identity, salt, "limit") < limit
    place = _unit_interval(records.identity, salt, "split")
    parts: dict[SplitName, NDArray[np.bool_]] = {
        "train": place < split.train,
        "validation": (place >= split.train) & (place < split.train + split.validation),
        "test": place >= split.train + split.validation,
    }
    taken: dict[SplitName, Records] = {name: records.take(np.flatnonzero(used & inside)) for name, inside in parts.items()}
    for name, part in taken.items():
        if not len(part):
            raise FedethosError(
                "DATA-131",
                f"The {name} split holds nobody.",
                where=f"data.split.{name}",
                why="Training, choosing a threshold and measuring each need people of their own.",
                fix="Use more records, a larger data.limit, or a larger share for this split.",
            )
    return taken


def _unit_interval(identity: NDArray[np.uint8], salt: str, purpose: str) -> NDArray[np.float64]:
    """A number in [0, 1) per identity, independent between purposes and salts."""
    key, prefix = salt.encode(), f"fedethos/{purpose}/v1:".encode()
    digests = b"".join(hmac.digest(key, prefix + row.tobytes(), "sha256")[:8] for row in identity)
    # 53 bits fit a float64 exactly; dividing all 64 could round up to 1.0.
    return (np.frombuffer(digests, dtype=">u8") >> np.uint64(11)).astype(np.float64) / 2.0**53
