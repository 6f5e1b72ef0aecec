"""Write an unexpected failure to a file that only its owner can read, and give it a random number to talk about.

A traceback may quote data, so it goes neither to the terminal nor over the network. Local variables are never written.
"""

from __future__ import annotations

import os
import secrets
import traceback
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Incident:
    """``file`` is None where no file could be written."""

    id: str
    file: Path | None


def record(error: BaseException) -> Incident:
    """Write the traceback of ``error`` to ``$XDG_STATE_HOME/fedethos/incidents/`` with mode 0600."""
    number = secrets.token_hex(4)
    state = Path(os.environ.get("XDG_STATE_HOME") or Path("~/.local/state").expanduser())
    file = state / "fedethos" / "incidents" / f"{number}.txt"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
            stream.writelines(traceback.format_exception(error))
    except OSError:
        return Incident(number, None)
    return Incident(number, file)
