"""Python's cycle collector in a process of ours. Called first in every ``main``."""

from __future__ import annotations

import atexit
import gc

_OBJECTS = 5_000  # made since the last look for cycles; Python's own 700 means a thousand looks while libraries are imported


def spare_collections() -> None:
    """Look for cycles less often, and not at the end.

    torch alone leaves half a million objects that live as long as the process. To look through them again and again, and once more when
    everything ends anyway, takes a second of a process that imports it.
    """
    gc.set_threshold(_OBJECTS)
    atexit.register(gc.freeze)
