"""Text that somebody else wrote, for a terminal or a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection


def escaped(text: str, categories: Collection[str], *, but: str = "") -> str:
    """``text`` with every character of these Unicode general categories as its escape, such as ``\\x1b``, except those in ``but``.

    Cc: control characters; Cf: format characters, also those that turn the direction of writing; Zl and Zp: line and paragraph separators.
    """
    return "".join(
        one.encode("unicode_escape").decode("ascii") if unicodedata.category(one) in categories and one not in but else one for one in text
    )
