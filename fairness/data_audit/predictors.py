"""A plain predictor to measure with: logistic regression on one-hot levels and words, always tested on people it did not see."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fedethos.fairness.data_audit.table import Column, FloatArray, IntArray

FOLDS = 5
MAX_ROWS = 20_000  # that a predictor learns from and is tested on; more would only take time
_RARE = 11  # a level or word with fewer rows is left out: it tells persons apart, not groups
_WORDS = 20_000


def folds_of(people: IntArray, rng: np.random.Generator) -> IntArray:
    """Fold of each row, int64[n] in [0, FOLDS): all rows of a person are in one."""
    return (rng.permutation(int(people.max()) + 1) % FOLDS)[people]


def sample_rows(people: IntArray, rng: np.random.Generator, limit: int = MAX_ROWS) -> IntArray:
    """Ascending rows of whole people drawn at random, about ``limit`` of them; all rows where there are fewer."""
    if len(people) <= limit:
        return np.arange(len(people))
    rank = rng.permutation(int(people.max()) + 1)[people]
    return np.sort(np.argsort(rank, kind="stable")[:limit])


def design(columns: Sequence[Column], rows: IntArray) -> sparse.csr_matrix:
    """Levels as 0 and 1, free text as TF-IDF of words; float64[len(rows), d]."""
    blocks = [_words([column.text[row] for row in rows]) if column.text else _one_hot(column.codes[rows]) for column in columns]
    return sparse.csr_matrix(sparse.hstack([*blocks, sparse.csr_matrix((len(rows), 1))]))


def out_of_fold(matrix: sparse.csr_matrix, target: IntArray, fold: IntArray, classes: int) -> FloatArray:
    """Probability of each class, float64[n, classes], by a model that was fitted without the row's fold."""
    probability = np.zeros((len(target), classes))
    for number in range(FOLDS):
        test, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        seen = np.unique(target[train])
        if len(test) and len(seen) == 1:
            probability[test, seen[0]] = 1.0
        elif len(test) and len(seen):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # a ranking is all that is needed
                model = LogisticRegression(max_iter=200).fit(matrix[train], target[train])
            probability[np.ix_(test, model.classes_)] = model.predict_proba(matrix[test])
    return probability


def mean_auc(target: IntArray, probability: FloatArray) -> float | None:
    """Area under the ROC curve of each class against the rest, averaged; None where only one class occurs."""
    present = np.unique(target)
    if len(present) < 2:
        return None
    return float(np.mean([roc_auc_score(target == one, probability[:, one]) for one in present]))


def _one_hot(codes: IntArray) -> sparse.csr_matrix:
    often = np.bincount(codes) >= _RARE
    column = np.cumsum(often) - 1
    rows = np.flatnonzero(often[codes])
    return sparse.csr_matrix((np.ones(len(rows)), (rows, column[codes[rows]])), shape=(len(codes), max(int(often.sum()), 1)))


def _words(texts: Sequence[str]) -> sparse.csr_matrix:
    try:
        return sparse.csr_matrix(
            TfidfVectorizer(min_df=min(_RARE, len(texts)), max_features=_WORDS, sublinear_tf=True).fit_transform(texts)
        )
    except ValueError:  # no word occurs often enough
        return sparse.csr_matrix((len(texts), 1))
