"""A benchmark as plain data: questions for a language model, and what its answers' likelihoods are made into.

``client/scorer.py`` computes the likelihoods; nothing here knows a model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from fedethos.fairness.intervals import Estimate
from fedethos.fairness.suites.tally import Floats, Integers, Tally

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class Question:
    """``answers`` are compared by their likelihood after ``prompt``; None: they are whole texts, each from its first token on."""

    prompt: str | None
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Likelihoods:
    """``log_likelihood`` float64[q, k] in nats, -inf where a question has fewer answers; ``tokens`` int64[q, k]."""

    log_likelihood: Floats
    tokens: Integers

    @property
    def per_token(self) -> Floats:
        return np.where(self.tokens > 0, self.log_likelihood / np.maximum(self.tokens, 1), -np.inf)

    @property
    def choice(self) -> Integers:
        """The likeliest answer per token, int64[q]: the rule of the task multiple-choice."""
        return np.asarray(self.per_token.argmax(axis=1), dtype=np.int64)


@dataclass(frozen=True)
class Limit:
    """``measure`` of the whole suite may be ``at_most`` so much."""

    measure: str
    at_most: float


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One benchmark, ready to be asked.

    Attributes
    ----------
    name : str
    items : int
        What the benchmark itself counts: questions, pairs or groups.
    questions : sequence of Question
    instruct : bool
        Whether prompts are for somebody to answer, and so go into the chat template of a model that has one.
    tally : callable
        From the answers' likelihoods to tallies by group, ``EVERYTHING`` among them.
    """

    name: str
    items: int
    questions: Sequence[Question]
    instruct: bool
    tally: Callable[[Likelihoods], Mapping[str, Tally]]
    limit: Limit | None = None


@dataclass(frozen=True, kw_only=True)
class WrittenSuite:
    """A benchmark whose prompts a model answers in its own words; ``tally`` is of these texts, in the order of the prompts.

    ``false_positives``: how often the scorer of the texts flags harmless ones, by the group that they name.
    """

    name: str
    items: int
    prompts: Sequence[str]
    tally: Callable[[Sequence[str]], Mapping[str, Tally]]
    max_new_tokens: int = 64
    limit: Limit | None = None
    false_positives: Mapping[str, Estimate] = field(default_factory=dict)


def thin(items: Sequence[ItemT], count: int | None, seed: int, by: Callable[[ItemT], Hashable]) -> list[ItemT]:
    """At most ``count`` items in their order, about as many of each value of ``by``, chosen by ``seed`` alone; None: all."""
    if count is None or count >= len(items):
        return list(items)
    rng = np.random.default_rng(seed)
    strata: dict[Hashable, list[int]] = {}
    for place, item in enumerate(items):
        strata.setdefault(by(item), []).append(place)
    kept: list[int] = []
    smallest_first = sorted(strata.values(), key=len)  # what a small stratum cannot give, the larger ones do
    for done, own in enumerate(smallest_first):
        quota = (count - len(kept)) // (len(smallest_first) - done)
        kept += [own[row] for row in rng.permutation(len(own))[:quota]]
    return [items[place] for place in sorted(kept)]
