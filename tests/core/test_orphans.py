"""A process that watches its parent ends with it, even in the middle of work and when the parent is killed with SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_CHILD = "import os, time; from fedethos.orphans import end_with_parent; end_with_parent(); print(os.getpid(), flush=True); time.sleep(600)"
_PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_CHILD!r}])"


def test_a_child_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 60.0
    while _runs(child):
        assert time.monotonic() < end, "the orphan lives on"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat").read_text("utf-8")  # a zombie nobody has waited for has ended all the same
    return status.rpartition(")")[2].split()[0] != "Z"
