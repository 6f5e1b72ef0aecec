"""Which words of the texts are typical of a group: log-odds ratio with an informative Dirichlet prior.

Monroe, Colaresi & Quinn (2008, "Fightin' Words", equations 15 to 22): for word w in group i against the rest j, with y the number of
people who use it and prior a_w proportional to the use by everybody,

    d_w = log((y_wi + a_w) / (n_i + a_0 - y_wi - a_w)) - log((y_wj + a_w) / (n_j + a_0 - y_wj - a_w)),
    z_w = d_w / sqrt(1 / (y_wi + a_w) + 1 / (y_wj + a_w)).

A word counts once per person, so that one talkative record decides nothing. Only words of at least ``min_people`` people are looked at,
and listed only if |z| stands out among all words and groups (Sidak): a rare word could name a person.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from fedethos.fairness.data_audit.table import AuditTable, FloatArray, IntArray
from fedethos.fairness.intervals import critical

PRIOR = 500.0  # a_0: as many words of everybody's use are added to each side
LISTED = 15
_WORD = r"(?u)\b\w[\w'-]*\w\b"  # never-married is one word


@dataclass(frozen=True)
class Word:
    """``group`` uses it more than the others. ``people`` use it; ``share`` of the group's people do, ``rest`` of the others'."""

    word: str
    group: str
    log_odds: float
    z: float
    people: int
    share: float
    rest: float


def typical_words(table: AuditTable, attribute: str, *, min_people: int) -> tuple[Word, ...]:
    """At most ``LISTED`` words, the largest z first; none where there is no text or fewer than two groups can be compared."""
    compared = table.compared(attribute, min_people)
    if not table.text or len(compared) < 2:
        return ()
    rows = np.flatnonzero(np.isin(table.groups[attribute], compared))
    counter = CountVectorizer(binary=True, token_pattern=_WORD, dtype=np.int64)
    try:
        used = sparse.csr_matrix(counter.fit_transform([table.text[row] for row in rows]))
    except ValueError:  # no text has a word
        return ()
    pair, place = np.unique(
        table.people[rows] * len(compared) + np.searchsorted(compared, table.groups[attribute][rows]), return_inverse=True
    )
    gather = sparse.csr_matrix((np.ones(len(rows), dtype=np.int64), (place, np.arange(len(rows)))))
    of_person = sparse.csr_matrix(gather @ used)
    of_person.data[:] = 1
    group = pair % len(compared)
    by_group = np.stack([np.asarray(of_person[group == g].sum(axis=0)).ravel() for g in range(len(compared))]).astype(np.float64)
    often = _people_using(sparse.csr_matrix(of_person), pair // len(compared)) >= min_people
    names = np.asarray(counter.get_feature_names_out())[often]
    if not len(names):
        return ()
    return _strongest(by_group[:, often], np.bincount(group), names.tolist(), [table.categories[attribute][g] for g in compared])


def log_odds(inside: FloatArray, outside: FloatArray) -> tuple[FloatArray, FloatArray]:
    """d and z per word [W] from the counts inside and outside a group [W] (see the module)."""
    total = inside + outside
    prior = PRIOR * total / total.sum()

    def odds(count: FloatArray) -> FloatArray:
        ratio: FloatArray = (count + prior) / (count.sum() + PRIOR - count - prior)
        return np.log(ratio)

    with np.errstate(divide="ignore", invalid="ignore"):  # a vocabulary of one word has no rest
        difference = odds(inside) - odds(outside)
    return np.nan_to_num(difference), np.nan_to_num(difference) / np.sqrt(1.0 / (inside + prior) + 1.0 / (outside + prior))


def _people_using(of_pair: sparse.csr_matrix, person: IntArray) -> FloatArray:
    """Different people per word: somebody with rows in two groups is one person."""
    gather = sparse.csr_matrix((np.ones(len(person)), (np.unique(person, return_inverse=True)[1], np.arange(len(person)))))
    counts: FloatArray = np.asarray(((gather @ of_pair) > 0).sum(axis=0)).ravel()
    return counts


def _strongest(by_group: FloatArray, people: IntArray, words: list[str], groups: list[str]) -> tuple[Word, ...]:
    everybody = by_group.sum(axis=0)
    scores = [log_odds(inside, everybody - inside) for inside in by_group]
    z = np.stack([score for _, score in scores])
    best = z.argmax(axis=0)
    bar = critical(at_once=z.size)
    order = [w for w in np.argsort(-z.max(axis=0), kind="stable") if z[best[w], w] > bar][:LISTED]
    return tuple(
        Word(
            word=words[w],
            group=groups[best[w]],
            log_odds=float(scores[best[w]][0][w]),
            z=float(z[best[w], w]),
            people=int(everybody[w]),
            share=float(by_group[best[w], w] / people[best[w]]),
            rest=float((everybody[w] - by_group[best[w], w]) / (people.sum() - people[best[w]])),
        )
        for w in order
    )
