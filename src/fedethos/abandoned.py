"""A call that may take long and that nobody waits for any more once a process is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

_LOOK_SECONDS = 0.2

Answer = TypeVar("Answer")


def unless_stopped(call: Callable[[], Answer], stop: threading.Event) -> Answer | None:
    """What ``call`` returns or raises; None when ``stop`` is set before that: its thread is left to itself and keeps no process alive."""
    outcome: Future[Answer] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as failure:  # for whoever waits
            outcome.set_exception(failure)

    threading.Thread(target=run, name="question", daemon=True).start()
    while not (outcome.done() or stop.is_set()):
        wait([outcome], _LOOK_SECONDS)
    return outcome.result() if outcome.done() else None
