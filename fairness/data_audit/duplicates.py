"""The same record twice, within and across splits: what was trained on must not be what is tested on.

A person is in one split only (``data/split.py``), but two people, or one person under two identifiers, can bring the same record.
Records that agree in every column, and free texts that agree word for word, are copies: a test row that was trained on flatters the
model. Equal model inputs of a coarse table are often just alike people; they are counted apart.

Near copies of free texts: cosine of TF-IDF character 4-grams of at least ``NEAR``, each of at most 2,000 validation or test texts
against at most 10,000 training texts, drawn at random. A bounded sample: it finds that there are near copies, not all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from fedethos.fairness.data_audit.table import SPLITS, AuditTable, Column, IntArray

NEAR = 0.9
MAX_TESTED, MAX_TRAINED = 2_000, 10_000
_MIN_WORDS = 5  # shorter texts are equal by chance


@dataclass(frozen=True)
class Copies:
    """``within``: rows per split beyond the first of their kind there. ``across``: validation and test rows equal to a training row."""

    within: tuple[int, ...]
    across: int


@dataclass(frozen=True)
class NearCopies:
    """``found`` of ``tested`` validation and test texts are near, and not equal, to one of ``trained`` training texts."""

    found: int
    tested: int
    trained: int


@dataclass(frozen=True)
class Duplicates:
    """``texts`` and ``near`` only where the model reads free text."""

    records: Copies
    inputs: Copies
    texts: Copies | None
    near: NearCopies | None

    @property
    def leaked(self) -> int:
        """Validation and test rows that training has seen: equal in every column, or in a free text."""
        return max(self.records.across, 0 if self.texts is None else self.texts.across)


def find_duplicates(table: AuditTable, *, rng: np.random.Generator) -> Duplicates:
    texts = [column for column in table.columns if column.text]
    kinds = [copies(*_texts(column, table.split)) for column in texts]
    return Duplicates(
        records=copies(table.record, table.split),
        inputs=copies(table.model_input, table.split),
        texts=max(kinds, key=lambda kind: kind.across, default=None),
        near=near_copies(texts[0], table.split, rng=rng) if texts else None,
    )


def copies(key: IntArray, split: IntArray) -> Copies:
    """Rows [n] are equal where ``key`` is; ``split`` is an index into ``SPLITS``."""
    within = tuple(int((split == s).sum() - len(np.unique(key[split == s]))) for s in range(len(SPLITS)))
    return Copies(within, int(np.isin(key[split != 0], key[split == 0]).sum()))


def near_copies(column: Column, split: IntArray, *, rng: np.random.Generator) -> NearCopies:
    long = np.array([len(text.split()) >= _MIN_WORDS for text in column.text])
    trained, tested = (
        _drawn(np.flatnonzero(long & part), limit, rng) for part, limit in ((split == 0, MAX_TRAINED), (split != 0, MAX_TESTED))
    )
    seen = {column.text[row] for row in np.flatnonzero(split == 0)}
    tested = np.array([row for row in tested if column.text[row] not in seen], dtype=np.int64)
    if not len(trained) or not len(tested):
        return NearCopies(0, len(tested), len(trained))
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(4, 4), max_features=2**16, sublinear_tf=True, dtype=np.float32)
    learned = grams.fit_transform([column.text[row] for row in trained])
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine", algorithm="brute").fit(learned)
    distance, _ = nearest.kneighbors(grams.transform([column.text[row] for row in tested]))
    return NearCopies(int((1.0 - distance[:, 0] >= NEAR).sum()), len(tested), len(trained))


def _texts(column: Column, split: IntArray) -> tuple[IntArray, IntArray]:
    """Key and split of the texts that are long enough not to agree by chance."""
    rows = [row for row, text in enumerate(column.text) if len(text.split()) >= _MIN_WORDS]
    position: dict[str, int] = {}
    key = [position.setdefault(" ".join(column.text[row].split()).casefold(), len(position)) for row in rows]
    return np.array(key, dtype=np.int64), split[rows]


def _drawn(rows: IntArray, limit: int, rng: np.random.Generator) -> IntArray:
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, size=limit, replace=False))
