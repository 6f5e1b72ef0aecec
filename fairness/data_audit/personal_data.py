"""Direct identifiers in free text: counted by kind, never shown. A model can learn them by heart.

Patterns with check digits where the kind has them (cards: Luhn, ISO/IEC 7812-1; IBAN: mod 97, ISO 13616). They miss names and
addresses, and what is written in an unusual way: zero is not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedethos.fairness.data_audit.table import AuditTable


@dataclass(frozen=True)
class Identifiers:
    kind: str
    rows: int
    people: int


def _is_card(text: str) -> bool:
    digits = [int(character) for character in text if character.isdigit()]
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    plain = re.sub(r"\s", "", text).upper()
    number = "".join(str(int(character, 36)) for character in plain[4:] + plain[:4])
    return 15 <= len(plain) <= 34 and int(number) % 97 == 1


def _is_ssn(text: str) -> bool:
    """Areas 000, 666 and 900 to 999, group 00 and serial 0000 were never given out."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _always(text: str) -> bool:
    return True


KINDS: Mapping[str, tuple[re.Pattern[str], Callable[[str], bool]]] = {
    "e-mail address": (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[A-Za-z]{2,}\b"), _always),
    "phone number": (
        re.compile(r"(?<![\w+])(?:\+\d[\d ().-]{7,17}\d|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[ .-]\d{3}[ .-]\d{4})(?![\w-])"),
        _always,
    ),
    "US social security number": (re.compile(r"(?<![\d-])\d{3}-\d{2}-\d{4}(?![\d-])"), _is_ssn),
    "IBAN": (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _is_iban),
    "card number": (re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])"), _is_card),
}


def personal_data(table: AuditTable) -> tuple[Identifiers, ...]:
    """Rows and people per kind, zeros too; empty where the model reads no text."""
    if not table.text:
        return ()
    counts = []
    for kind, (pattern, is_one) in KINDS.items():
        rows = [row for row, text in enumerate(table.text) if any(is_one(match[0]) for match in pattern.finditer(text))]
        counts.append(Identifiers(kind, len(rows), len(np.unique(table.people[rows])) if rows else 0))
    return tuple(counts)
