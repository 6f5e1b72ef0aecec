"""What Linux says about a process: its children and its memory."""

from __future__ import annotations

from pathlib import Path


def children(pid: int) -> list[int]:
    """Direct children, started by whatever thread."""
    return [int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text("utf-8").split()]


def megabytes(pid: int, line: str = "VmRSS") -> float:
    """Resident memory in 10^6 bytes; ``VmHWM``: the most that it ever was."""
    found = next(row for row in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines() if row.startswith(f"{line}:"))
    return int(found.split()[1]) * 1024 / 1e6
