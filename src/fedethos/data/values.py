"""One text for one value, whatever file format it comes from. ``fedethos.data.readers`` applies it to every cell.

The rule, the same for CSV, Parquet, JSONL and Hugging Face datasets:

- Text is kept as it stands, without blanks around it. CSV holds only text, so ``1.0`` stays ``1.0`` and ``01`` stays ``01``.
- A typed number is written as Python (and so pandas) writes it: the integer 39 is ``39``, the float 1 is ``1.0``,
  a truth value is ``True``.
- Null, NaN, empty text and the marks of ``data.na_values`` are missing (``None``).
- A list or an object is its JSON with sorted keys.

``1`` and ``1.0`` are different values: a code list under ``data.map`` names each spelling that occurs.
"""

from __future__ import annotations

import json
import math
import re

NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")  # plain decimal text; Python's float() takes more


def text_of(value: object) -> str | None:
    """The text of one cell, or None where it is missing."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, list | dict):
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return str(value)
