"""What Linux says about a process: its children and its memory."""

from __future__ import annotations

import threading
from pathlib import Path


def children(pid: int) -> list[int]:
    """Direct children, started by whatever thread."""
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text("utf-8").split()]


def megabytes(pid: int, line: str = "VmRSS") -> float:
    """Resident memory in 10^6 bytes; ``RssAnon``: without the pages of files that are mapped, which the kernel takes back at will."""
    found = next(row for row in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines() if row.startswith(f"{line}:"))
    return int(found.split()[1]) * 1024 / 1e6


class PeakMemory(threading.Thread):
    """The most megabytes of its own (``RssAnon``) that a process had while this was open, looked at every 20 ms."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid, self._over = pid, threading.Event()
        self.before = self.peak = megabytes(pid, "RssAnon")

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, megabytes(self._pid, "RssAnon"))

    def __enter__(self) -> PeakMemory:
        self.start()
        return self

    def __exit__(self, *ending: object) -> None:
        self._over.set()
        self.join()
