"""Counterfactual records: the same record as if its person had another value of one sensitive attribute.

The sensitive column's value becomes the next declared category (of two: the other) wherever the model's inputs show the column; the
identity terms of the attribute are swapped in everything else that they show. The label and the person stay, and so do a missing
value, and a number that ``data.map`` sorts into groups. Who other columns give away is not rewritten.

``with_copies`` is counterfactual data augmentation (Lu et al. 2018): a copy belongs to the unit of its original, so that one clipped
gradient covers both and no epsilon changes. Next: ``client/examples.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedethos.data.features import Features, encode_features
from fedethos.data.identity import Source, read_identity_terms
from fedethos.data.records import Records, Swapped
from fedethos.data.template import Template
from fedethos.errors import FedethosError
from fedethos.job_data import UNKNOWN, Data

Values = Sequence[str | None]
Table = Mapping[str, Values]
Swap = Callable[[str], str]
Swaps = Mapping[str, Swap]
"""Sensitive attribute to the swap of its identity terms (``identity.Swapper``); ``unswapped`` where it has none."""


def unswapped(text: str) -> str:
    """The swap of an attribute without identity terms: only its column changes."""
    return text


def read_swaps(data: Data, source: Source | None, base: Path) -> dict[str, Swap]:
    """The swap of every sensitive attribute, with the identity terms of ``source`` (``read_identity_terms``, whose errors it raises).

    DATA-172 when ``source`` holds terms of no sensitive attribute.
    """
    terms = read_identity_terms(source, base=base)
    if terms and not set(terms) & set(data.sensitive):
        raise FedethosError(
            "DATA-172",
            "The identity terms are of no sensitive attribute of the job.",
            where="fairness.identity_terms",
            fix=f"Declared are: {', '.join(data.sensitive) or 'none'}. Name the list after one of them.",
        )
    return {attribute: terms.get(attribute, unswapped) for attribute in data.sensitive}


def swapped_texts(
    template: Template, shown: Table, original: Sequence[str], attribute: str, categories: Sequence[str], swap: Swap
) -> Swapped:
    """Counterfactual texts of n records.

    Parameters
    ----------
    shown : mapping
        Column to its n values as the template shows them.
    original : sequence of str, n
        The texts.
    categories : sequence of str
        Declared categories of ``attribute``.
    """
    values = [shown[column] for column in template.columns]
    becomes = _next_of(categories)
    texts = []
    for row, value in zip(zip(*values, strict=True), shown[attribute], strict=True):
        new = becomes.get(value, value)
        texts.append((UNKNOWN if new is None else new).join(swap(text) for text in _around(template, row, attribute)))
    return Swapped(np.array([new != old for new, old in zip(texts, original, strict=True)], dtype=np.bool_), text=tuple(texts))


def swapped_features(inputs: Table, features: Features, attribute: str, categories: Sequence[str], swap: Swap) -> Swapped:
    """Counterfactual features of n records: a category changes only into another that ``features`` lists. Arguments as above."""
    table = dict(inputs)
    for column, declared in features.items():
        if isinstance(declared, list):
            wanted = _next_of(categories) if column == attribute else {category: swap(category) for category in declared}
            becomes: dict[str | None, str] = {old: new for old, new in wanted.items() if new in declared}
            table[column] = [becomes.get(value, value) for value in inputs[column]]
    encoded = encode_features(table, features)
    return Swapped((encoded != encode_features(inputs, features)).any(axis=1), features=encoded)


def counterfactual(records: Records, attribute: str) -> Records:
    """The records in which something of ``attribute`` could be swapped, in order, as they read after the swap."""
    swapped = records.swapped[attribute]
    rows = np.flatnonzero(swapped.changed)
    taken = swapped.take(rows)
    return replace(records.take(rows), text=taken.text, features=taken.features, swapped={})


def with_copies(records: Records) -> Records:
    """The records, then for each attribute of ``records.swapped`` a copy of every record in which something could be swapped.

    A copy keeps the label, the groups, the unit and the identity of its original; ``original`` says which record that is.
    """
    rows = np.concatenate([np.arange(len(records)), *(np.flatnonzero(one.changed) for one in records.swapped.values())])
    copies = [counterfactual(records, attribute) for attribute in records.swapped]
    return replace(
        records.take(rows),
        text=sum((part.text for part in copies), start=records.text),
        features=None if records.features is None else np.concatenate([records.features, *(part.features for part in copies)]),
        original=rows,
        swapped={},
    )


def _next_of(categories: Sequence[str]) -> dict[str | None, str]:
    return dict(zip(categories, [*categories[1:], *categories[:1]], strict=True))


def _around(template: Template, row: Values, attribute: str) -> list[str]:
    """The rendered text between the places of ``attribute``."""
    stretches = [""]
    for (literal, column), value in zip(template.parts, row, strict=True):
        stretches[-1] += literal
        if column == attribute:
            stretches.append("")
        else:
            stretches[-1] += UNKNOWN if value is None else value
    stretches[-1] += template.tail
    return stretches
