"""The validated updates of one round: in memory while they are few, on disk beyond that, so that a coordinator's memory does not grow
with the number of its sites.

Next on the path: ``strategies/averaging.py``, which reads them one by one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from safetensors.numpy import load_file, save

from fedethos.messages import Arrays
from fedethos.storage import write_errors

_PREFIX = ".updates-"
_MOST_BYTES_IN_MEMORY = 256 * 1024 * 1024


class Updates(Mapping[str, Arrays]):
    """By site, in the order of the names whatever the order of arrival, so that a sum has one order.

    A context manager: outside of it nothing is kept, and what a killed process left in ``folder`` is deleted.

    Parameters
    ----------
    folder : Path
        Where a hidden folder is made, and deleted again, when updates need more than ``most_bytes``. RUN-904 when its disk is full.
    """

    def __init__(self, folder: Path, *, most_bytes: int = _MOST_BYTES_IN_MEMORY) -> None:
        self._folder = folder
        self._left = most_bytes
        self._kept: dict[str, Arrays | Path] = {}
        self._disk: tempfile.TemporaryDirectory[str] | None = None

    def put(self, site: str, update: Arrays) -> None:
        """Keep the update of ``site`` in place of an earlier one."""
        size = sum(array.nbytes for array in update.values())
        if size <= self._left:
            self._left -= size
            self._kept[site] = update
            return
        with write_errors(self._folder):
            if self._disk is None:
                self._disk = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=self._folder)
            path = Path(self._disk.name, f"{len(self._kept)}.safetensors")
            path.write_bytes(save(update))
        self._kept[site] = path

    def __getitem__(self, site: str) -> Arrays:
        kept = self._kept[site]
        if isinstance(kept, Path):
            loaded: Arrays = load_file(kept)
            return loaded
        return kept

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._kept))

    def __len__(self) -> int:
        return len(self._kept)

    def __enter__(self) -> Updates:
        for left in self._folder.glob(f"{_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._kept.clear()
        if self._disk is not None:
            self._disk.cleanup()
