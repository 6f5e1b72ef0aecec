"""FairFed against the paper's equations, worked by hand."""

import numpy as np
import pytest

from fedethos.fairness.counts import GroupCounts
from fedethos.strategies.averaging import capped_shares
from fedethos.strategies.fairfed import FairFed, aggregation_shares


def counts(*rows: tuple[int, int, int, int]) -> GroupCounts:
    """TN, FP, FN, TP by group; ``unknown`` is added."""
    return GroupCounts.of(np.array([*rows, (0, 0, 0, 0)]).reshape(-1, 2, 2), favorable=1)


FAIR = counts((50, 50, 20, 80), (50, 50, 20, 80))  # TPR .8 and .8
UNFAIR = counts((50, 50, 60, 40), (50, 50, 20, 80))  # .4 and .8
ONE_GROUP = counts((0, 0, 0, 0), (80, 20, 40, 60))  # accuracy .7
ALL = counts((100, 100, 80, 120), (180, 120, 80, 220))  # .6 and .7333; accuracy .64
RULE = FairFed(constraint="equal_opportunity", learning_rate=0.5, min_group_size=1)


def test_weights_move_by_the_distance_from_the_global_gap() -> None:
    overall = 0.6 - 220 / 300
    by_hand = {"a": abs(overall), "b": abs(overall + 0.4), "c": abs(0.62 / 1.0 - 0.7)}
    everybody_accuracy = (100 + 120 + 180 + 220) / 1000
    assert everybody_accuracy == 0.62
    mean = sum(by_hand.values()) / 3
    moved = RULE.updated({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": FAIR, "b": UNFAIR, "c": ONE_GROUP}, ALL)
    assert moved == pytest.approx({name: old - 0.5 * (by_hand[name] - mean) for name, old in (("a", 0.5), ("b", 0.3), ("c", 0.2))})
    assert sum(moved.values()) == pytest.approx(1.0)  # the mean is taken away
    assert RULE.updated({"a": 0.7, "late": 0.3}, {"a": FAIR}, ALL) == pytest.approx({"a": 0.7, "late": 0.3})


def test_gaps_are_signed_for_two_groups_and_undefined_for_small_ones() -> None:
    assert RULE.gap(UNFAIR) == pytest.approx(-0.4)
    assert RULE.gap(ONE_GROUP) is None
    assert FairFed(constraint="equal_opportunity", learning_rate=1.0, min_group_size=201).gap(UNFAIR) is None
    parity = FairFed(constraint="demographic_parity", learning_rate=1.0, min_group_size=1)
    assert parity.gap(UNFAIR) == pytest.approx(90 / 200 - 130 / 200)
    assert RULE.gap(counts((0, 0, 1, 3), (0, 0, 3, 1), (0, 0, 2, 2))) == pytest.approx(0.5)


def test_shares_are_never_negative_and_never_above_the_cap() -> None:
    assert aggregation_shares({"a": 0.9, "b": -0.2, "c": 0.3}, 1.0) == pytest.approx({"a": 0.75, "b": 0.0, "c": 0.25}, abs=1e-5)
    assert aggregation_shares({"a": -1.0, "b": 0.0}, 0.5) == {"a": 0.5, "b": 0.5}
    assert aggregation_shares({"a": 1.0, "b": -1.0, "c": -1.0}, 0.5) == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25})
    capped = aggregation_shares({"a": 0.9, "b": 0.05, "c": 0.05}, 0.5)
    assert capped == capped_shares({"a": 0.9, "b": 0.05, "c": 0.05}, 0.5)
    assert max(capped.values()) == pytest.approx(0.5)
