"""No process of ours outlives the one that started it: an orphan would train for nobody, or hold a run folder against its successor."""

from __future__ import annotations

import os
import threading
import time

_EVERY_SECONDS = 0.5


def end_with_parent(parent: int | None = None) -> None:
    """From now on this process ends at once, without a word, when its parent does.

    ``parent``: the pid that started it, default: today's parent. Nothing is tidied up: whatever is written here survives SIGKILL.
    """
    expected = os.getppid() if parent is None else parent

    def watch() -> None:
        while os.getppid() == expected:
            time.sleep(_EVERY_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent").start()
