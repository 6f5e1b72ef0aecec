"""Strategies that look at risks: FedMinMax and TERM over groups, AFL and q-FedAvg over sites; by hand or from the paper's formula."""

import math

import numpy as np
import pytest

from fedethos.fairness.counts import GroupCounts
from fedethos.server.steering_rules import site_risks
from fedethos.strategies import afl, qfedavg
from fedethos.strategies.fedminmax import FedMinMax
from fedethos.strategies.risks import known_groups, risk, risks
from fedethos.strategies.term import Tilted

# (group, label, prediction), unknown last: 200 and 300 people, wrong 80 and 60 of them; unknown 20, wrong 10
COUNTS = GroupCounts.of(np.array([[[80, 20], [60, 40]], [[80, 20], [40, 160]], [[5, 5], [5, 5]]]), favorable=1)
ONES = np.ones((3, 2))


def test_the_risk_is_the_share_of_wrong_decisions() -> None:
    np.testing.assert_allclose(risks(COUNTS), [0.4, 0.2, 0.5])
    assert risk(COUNTS) == pytest.approx(150 / 520)
    assert known_groups(COUNTS, 1) == [0, 1]
    assert known_groups(COUNTS, 201) == [1]


def test_fedminmax_moves_to_the_group_with_the_larger_risk() -> None:
    """mu = (.4, .6) + .5 (.4, .2) = (.6, .7); .15 too much each: (.45, .55)."""
    rule = FedMinMax(learning_rate=0.5, max_weight=4.0, min_group_size=1)
    once = rule.updated(ONES, COUNTS)
    np.testing.assert_allclose(once, [[0.45 / 0.4] * 2, [0.55 / 0.6] * 2, [1.0, 1.0]])
    np.testing.assert_allclose(rule.updated(once, COUNTS)[:2, 0], [0.5 / 0.4, 0.5 / 0.6])
    far = FedMinMax(learning_rate=50.0, max_weight=2.0, min_group_size=1).updated(ONES, COUNTS)
    np.testing.assert_allclose(far[:2, 0], [2.0, 0.0])  # 1 / .4, capped
    np.testing.assert_array_equal(FedMinMax(learning_rate=1.0, max_weight=4.0, min_group_size=201).updated(ONES, COUNTS), ONES)


def test_term_weighs_as_the_gradient_of_the_tilted_risk() -> None:
    """The weights times rho are the partial derivatives of (1/t) log sum rho exp(t R), here by finite differences."""
    tilt, share, risk_of = 3.0, np.array([0.4, 0.6]), np.array([0.4, 0.2])

    def tilted(values: np.ndarray) -> float:
        return math.log((share * np.exp(tilt * values)).sum()) / tilt

    step = 1e-6
    slope = [(tilted(risk_of + step * unit) - tilted(risk_of - step * unit)) / (2 * step) for unit in np.eye(2)]
    weights = Tilted(tilt=tilt, max_weight=4.0, min_group_size=1).updated(ONES, COUNTS)
    np.testing.assert_allclose(weights[:2, 0] * share, slope, rtol=1e-7)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 1])
    np.testing.assert_array_equal(weights[2], 1.0)
    assert Tilted(tilt=50.0, max_weight=1.5, min_group_size=1).updated(ONES, COUNTS).max() == 1.5
    np.testing.assert_array_equal(Tilted(tilt=3.0, max_weight=4.0, min_group_size=201).updated(ONES, COUNTS), ONES)


def test_afl_moves_to_the_site_with_the_larger_risk() -> None:
    """(.5, .3, .2) + (.1, .2, .6) is .9 too much: .3 each would make the others (.3, .2, .5)."""
    moved = afl.updated({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.1, "b": 0.2, "c": 0.6}, learning_rate=1.0)
    assert moved == pytest.approx({"a": 0.3, "b": 0.2, "c": 0.5})
    late = afl.updated({"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.1, "b": 0.3, "c": math.nan}, learning_rate=1.0)
    assert late == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.2})
    assert afl.updated({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 0.0}, learning_rate=9.0) == {"a": 1.0, "b": 0.0}


def test_a_site_without_counts_has_the_last_risk_or_that_of_everybody() -> None:
    none = GroupCounts.of(np.zeros((3, 2, 2), dtype=np.int64), favorable=1)
    right = GroupCounts.of(np.array([[[9, 0], [0, 9]]] * 3), favorable=1)
    before = {"a": math.nan, "b": 0.7, "c": math.nan, "d": math.nan}
    found = site_risks(before, {"a": COUNTS, "b": none, "d": right}, COUNTS)
    assert found == pytest.approx({"a": 150 / 520, "b": 0.7, "c": 150 / 520, "d": qfedavg.LEAST_RISK})
    assert site_risks({"a": math.nan}, {}, none) == {"a": 1.0}


@pytest.mark.parametrize("q", [0.0, 0.5, 2.0])
def test_qfedavg_is_algorithm_2_of_its_paper(q: float) -> None:
    """w - sum_k Delta_k / sum_k h_k with Delta_k = F_k^q L (w - w_k), h_k = q F_k^(q-1) |L (w - w_k)|^2 + L F_k^q; equal p_k."""
    rng = np.random.default_rng(0)
    before = {"x": rng.normal(size=(2, 3)).astype(np.float32), "y": rng.normal(size=4).astype(np.float32)}
    updates = {name: {key: (array + rng.normal(size=array.shape)).astype(np.float32) for key, array in before.items()} for name in "abc"}
    loss, lipschitz = {"a": 0.1, "b": 0.3, "c": 0.6}, 2.0
    delta, bend = dict.fromkeys(before, 0.0), 0.0
    for name, update in updates.items():
        moved = {key: lipschitz * (before[key].astype(float) - update[key]) for key in before}
        for key in before:
            delta[key] = delta[key] + loss[name] ** q * moved[key]
        length = sum(float((array**2).sum()) for array in moved.values())
        bend += q * loss[name] ** (q - 1) * length + lipschitz * loss[name] ** q
    shares = qfedavg.weighted(dict.fromkeys("abc", 1 / 3), loss, q=q)
    total = sum(shares.values())
    mean = {key: sum(shares[name] / total * updates[name][key] for name in "abc").astype(np.float32) for key in before}
    found = qfedavg.shortened(before, updates, shares, mean, loss, q=q, lipschitz=lipschitz)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    for key, array in before.items():
        np.testing.assert_allclose(found[key], array - delta[key] / bend, rtol=1e-5, atol=1e-6)
