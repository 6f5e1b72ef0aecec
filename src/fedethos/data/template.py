"""``data.text``: a sentence with the names of columns in braces, ``{age} years old, {occupation}``.

Only a plain ``{column}`` is allowed (``{{`` and ``}}`` are literal braces): no format specification, conversion, attribute
or index, and a value is never parsed again, so a record cannot reach into the program. A missing value reads ``unknown``.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from fedethos.errors import FedethosError
from fedethos.job_data import UNKNOWN


@dataclass(frozen=True)
class Template:
    """Each part is literal text and the column that follows it; ``tail`` is the text after the last column."""

    parts: tuple[tuple[str, str], ...]
    tail: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(column for _, column in self.parts)

    def render(self, table: Mapping[str, Sequence[str | None]]) -> tuple[str, ...]:
        """One text per row of ``table`` (column name to its values)."""
        literals = [literal for literal, _ in self.parts]
        return tuple(
            "".join(literal + (UNKNOWN if value is None else value) for literal, value in zip(literals, row, strict=True)) + self.tail
            for row in zip(*(table[column] for column in self.columns), strict=True)
        )


def parse_template(text: str | dict[Literal["column"], str], *, constant: bool = False, where: str = "data.text") -> Template:
    """``data.text`` as a template; ``{column: NAME}`` is that column as it is. Raises DATA-112 for anything but plain ``{column}``.

    ``constant``: it may name no column. ``where``: the template's key in the job.
    """
    if not isinstance(text, str):
        return Template((("", text["column"]),))
    parts, literal = [], ""
    try:
        for text_before, column, specification, conversion in string.Formatter().parse(text):
            literal += text_before
            if column is None:
                continue
            if specification or conversion:
                raise _refused(where, "has a format specification or conversion")
            if not column.strip():
                raise _refused(where, "has braces without a column name")
            parts.append((literal, column.strip()))
            literal = ""
    except ValueError:
        raise _refused(where, "has a brace that is not closed or not opened") from None
    if not parts and not constant:
        raise _refused(where, "names no column, so that every record would read the same")
    return Template(tuple(parts), literal)


def _refused(where: str, problem: str) -> FedethosError:
    return FedethosError(
        "DATA-112", f"The template {problem}.", where=where, fix="Write plain {column} names; write a literal brace twice."
    )
