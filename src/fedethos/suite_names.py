"""What ``fedethos evaluate --suite`` takes; light, because ``--help`` prints it. Next: ``suite_record.py``."""

from __future__ import annotations

SUITES = ("bbq", "crows-pairs", "stereoset", "winobias", "ethics", "perplexity", "text", "scenario")
"""What ``--suite`` takes. ``ethics`` is up to five suites, one a part."""

PUBLIC = ("bbq", "crows-pairs", "stereoset", "winobias", "ethics")
"""Of these: benchmarks that anybody can have."""

EVERYTHING = "all"
"""Name of the group that is the whole suite."""
