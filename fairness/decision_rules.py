"""What turns a score into a decision when each group has its own rule: plain data, and the chance that it gives a score.

A deterministic rule has one threshold. A randomised one has two, with a coin between them (Hardt, Price and Srebro 2016, §3.2).
Rules come from ``group_thresholds.py``; a site applies them in ``client/evaluator.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedethos.errors import FedethosError
from fedethos.fairness.histograms import FloatArray, IntArray

NUMBERS = 5
"""Numbers of one rule in a message: low, high, and three chances."""

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True)
class DecisionRule:
    """Chances of a favorable decision at log-odds below ``low``, from ``low`` on, and from ``high`` on.

    Raises
    ------
    FedethosError
        AGG-760 for thresholds that are not finite or not in order, or chances outside [0, 1] or falling with the score.
    """

    low: float
    high: float
    chances: tuple[float, float, float]

    def __post_init__(self) -> None:
        below, between, above = self.chances
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high and 0.0 <= below <= between <= above <= 1.0):
            raise FedethosError("AGG-760", "A decision rule has thresholds or chances out of order.", why="Nobody was decided about.")

    @classmethod
    def at(cls, threshold: float) -> DecisionRule:
        """Favorable exactly from ``threshold`` on, in log-odds."""
        return cls(threshold, threshold, (0.0, 1.0, 1.0))

    @property
    def randomized(self) -> bool:
        """Whether somebody's decision is left to a coin."""
        between = (self.chances[1],) if self.low < self.high else ()
        return any(0.0 < chance < 1.0 for chance in (self.chances[0], *between, self.chances[2]))

    @property
    def numbers(self) -> tuple[float, ...]:
        """As a message carries it."""
        return (self.low, self.high, *self.chances)

    def chance(self, log_odds: Scores) -> FloatArray:
        """Chance of a favorable decision, float64 of the shape of ``log_odds``."""
        return np.asarray(self.chances, dtype=np.float64)[(log_odds >= self.low).astype(np.int64) + (log_odds >= self.high)]


@dataclass(frozen=True)
class GroupRules:
    """One rule per group of ``attribute``, ``unknown`` last. ``pooled``: indices of the groups that keep everybody's threshold."""

    attribute: str
    rules: tuple[DecisionRule, ...]
    pooled: tuple[int, ...] = ()

    @property
    def randomized(self) -> bool:
        return any(rule.randomized for rule in self.rules)

    @property
    def numbers(self) -> tuple[float, ...]:
        """All rules one after the other."""
        return tuple(number for rule in self.rules for number in rule.numbers)

    @classmethod
    def of_numbers(cls, attribute: str, numbers: Sequence[float]) -> GroupRules:
        """What ``numbers`` says. AGG-760 when it is not a whole number of rules."""
        if not numbers or len(numbers) % NUMBERS:
            raise FedethosError("AGG-760", "A message does not hold a whole number of decision rules.")
        parts = [numbers[start : start + NUMBERS] for start in range(0, len(numbers), NUMBERS)]
        return cls(attribute, tuple(DecisionRule(low, high, (below, between, above)) for low, high, below, between, above in parts))

    def chance(self, log_odds: Scores, group: IntArray) -> FloatArray:
        """Chance of a favorable decision for each record, float64[n]; ``group`` int64[n] of ``attribute``."""
        chances = np.stack([rule.chance(log_odds) for rule in self.rules])
        return np.asarray(chances[group, np.arange(len(group))], dtype=np.float64)
