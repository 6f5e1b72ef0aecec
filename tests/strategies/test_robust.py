"""Robust rules against dense matrices, Flower's and scipy's own rules, hand-worked numbers, and a planted problem under attack."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.multikrum import select_multikrum
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import trim_mean

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Arrays
from fedethos.strategies.averaging import weighted_mean
from fedethos.strategies.coordinatewise import best_factors, coordinatewise, weighted_median, weighted_trimmed_mean
from fedethos.strategies.krum import krum, krum_scores
from fedethos.strategies.norm_bound import bounded, shortened
from fedethos.strategies.product import Geometry
from fedethos.strategies.robust import defend

A, B, HEAD = "base.layer.5.lora_A.weight", "base.layer.5.lora_B.weight", "classifier.bias"
A2, B2 = "base.layer.4.lora_A.weight", "base.layer.4.lora_B.weight"
SCALE = 2.0


def adapter(seed: int, spread: float = 1.0) -> Arrays:
    rng = np.random.default_rng(seed)
    shapes = {A: (2, 7), B: (5, 2), A2: (2, 4), B2: (3, 2), HEAD: (2,)}
    return {name: (spread * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def dense(update: Arrays, frozen: Arrays | None = None) -> np.ndarray:
    """The whole update of the model as one vector, by plain matrix products."""
    every = {name: array.astype(np.float64) for name, array in {**(frozen or {}), **update}.items()}
    products = [SCALE * every[B] @ every[A], SCALE * every[B2] @ every[A2], every[HEAD]]
    return np.concatenate([part.ravel() for part in products])


def job(rule: str, *, ffa: bool = False, **keys: object) -> Job:
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "robust",
            "model": {"path": "asset:minilm"},
            "lora": {"r": 2, "lora_alpha": 2 * SCALE},
            "data": {"path": "builtin:adult", "text": "{age}", "label": {"column": "y", "values": ["a", "b"], "favorable": "b"}},
            "robustness": {"rule": rule, **keys},
            "federation": {"min_sites": 5, "aggregation": "ffa" if ffa else "fedavg"},
        }
    )


def trained(update: Arrays) -> Arrays:
    return {name: array for name, array in update.items() if "lora_A" not in name}


# --- distances on the product ---------------------------------------------------------------------------------------------------


def test_distance_is_that_of_the_dense_products() -> None:
    one, other = adapter(1), adapter(2)
    assert Geometry({}, SCALE).distance(one, other) == pytest.approx(np.linalg.norm(dense(one) - dense(other)), rel=1e-12)
    frozen = {A: one[A], A2: one[A2]}
    expected = np.linalg.norm(dense(trained(one), frozen) - dense(trained(other), frozen))
    assert Geometry(frozen, SCALE).distance(trained(one), trained(other)) == pytest.approx(expected, rel=1e-12)


def test_the_same_product_from_other_factors_has_no_distance() -> None:
    one = adapter(1)
    other = one | {A: 4 * one[A], B: one[B] / 4}  # a power of two: exact in float32
    assert Geometry({}, SCALE).distance(one, other) < 1e-6
    assert np.linalg.norm(one[A] - other[A]) > 1  # what a rule on the factors would see


def test_close_updates_keep_their_digits() -> None:
    one = adapter(1, spread=100.0)
    other = one | {B: np.nextafter(one[B], np.float32(np.inf))}
    assert Geometry({}, SCALE).distance(one, other) == pytest.approx(np.linalg.norm(dense(one) - dense(other)), rel=1e-6)


def test_where_one_factor_rests_the_other_s_step_is_measured_on_the_product() -> None:
    """rolora's even rounds: A trains."""
    one, other = adapter(1), adapter(2)
    resting = {B: one[B], B2: one[B2]}
    moved = [{name: array for name, array in update.items() if name not in resting} for update in (one, other)]
    expected = np.linalg.norm(dense(moved[0], resting) - dense(moved[1], resting))
    assert Geometry(resting, SCALE).distance(*moved) == pytest.approx(expected, rel=1e-12)


def core_round(seed: int) -> tuple[Arrays, Arrays]:
    """What trains and what rests under fedsb: a core between orthonormal factors of one layer, and a head."""
    rng = np.random.default_rng(seed)
    factors = np.random.default_rng(0)
    a, b = np.linalg.qr(factors.normal(size=(7, 2)))[0].T, np.linalg.qr(factors.normal(size=(5, 2)))[0]
    core = {"base.layer.5.lora_A.default.core.weight": rng.normal(size=(2, 2)), HEAD: rng.normal(size=2)}
    return {name: array.astype(np.float32) for name, array in core.items()}, {A: a.astype(np.float32), B: b.astype(np.float32)}


def core_dense(update: Arrays, resting: Arrays) -> np.ndarray:
    core, head = (array.astype(np.float64) for array in update.values())
    return np.concatenate([(SCALE * resting[B].astype(np.float64) @ core @ resting[A]).ravel(), head])


def test_a_core_counts_as_what_it_does_to_the_layer() -> None:
    (one, resting), (other, _) = core_round(1), core_round(2)
    length = np.linalg.norm(core_dense(one, resting) - core_dense(other, resting))
    geometry = Geometry(resting, SCALE)
    assert geometry.distance(one, other) == pytest.approx(length, rel=1e-6)
    near = shortened(one, other, geometry, float(length) / 4)
    step = core_dense(near, resting) - core_dense(other, resting)
    np.testing.assert_allclose(step, (core_dense(one, resting) - core_dense(other, resting)) / 4, atol=1e-5)


# --- coordinate-wise rules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [3, 4, 6, 7, 10])
def test_with_equal_weights_they_are_numpys_median_and_scipys_trimmed_mean(sites: int) -> None:
    values, weights = np.random.default_rng(sites).normal(size=(sites, 3, 4)), np.ones(sites)
    np.testing.assert_allclose(weighted_median(values, weights), np.median(values, axis=0), rtol=1e-12)
    for cut in range((sites + 1) // 2):
        expected = trim_mean(values, cut / sites + 1e-12, axis=0)
        np.testing.assert_allclose(weighted_trimmed_mean(values, weights, cut / sites), expected, rtol=1e-9, atol=1e-12)


def test_weights_by_hand() -> None:
    values = np.array([[1.0], [2.0], [10.0]])
    assert weighted_median(values, np.array([0.2, 0.2, 0.6]))[0] == 10.0
    assert weighted_median(values, np.array([0.25, 0.25, 0.5]))[0] == 6.0  # every m in [2, 10] has half on each side
    # cut .2 at each end of weights .5 .3 .2: what is left weighs .3 .3 0
    assert weighted_trimmed_mean(values, np.array([0.5, 0.3, 0.2]), 0.2)[0] == pytest.approx((0.3 * 1 + 0.3 * 2) / 0.6)


@settings(deadline=None, max_examples=50)
@given(
    weights=st.lists(st.floats(0.1, 1.0), min_size=3, max_size=9),
    attack=st.floats(-1e9, 1e9),
    attackers=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_minority_cannot_leave_the_range_of_the_honest(weights: list[float], attack: float, attackers: int, seed: int) -> None:
    share = np.asarray(weights) / sum(weights)
    attackers = min(attackers, len(weights) - 1)
    values = np.random.default_rng(seed).normal(size=len(weights))
    values[:attackers] = attack
    low, high = values[attackers:].min(), values[attackers:].max()
    if share[:attackers].sum() < 0.499:
        assert low - 1e-9 <= weighted_median(values, share) <= high + 1e-9
        trimmed = float(share[:attackers].sum())
        rounding = 1e-6 + 1e-14 * abs(attack) / (1 - 2 * trimmed)  # the last digits of the shares, times the attack
        assert low - rounding <= weighted_trimmed_mean(values, share, trimmed) <= high + rounding


def test_median_of_b_when_a_is_frozen_and_of_dense_products_when_not() -> None:
    sites, sent = [adapter(seed) for seed in range(5)], adapter(9)
    frozen = {A: sent[A], A2: sent[A2]}
    middle, error = coordinatewise([trained(site) for site in sites], [1] * 5, weighted_median, trained(sent), Geometry(frozen, SCALE))
    np.testing.assert_allclose(middle[B], np.median([site[B] for site in sites], axis=0), rtol=1e-6)
    assert (error, set(middle)) == (0.0, {B, B2, HEAD})

    middle, error = coordinatewise(sites, [1] * 5, weighted_median, sent, Geometry({}, SCALE))
    missed = total = 0.0
    for name_a, name_b in ((A, B), (A2, B2)):
        wanted = np.median([site[name_b].astype(float) @ site[name_a] for site in sites], axis=0)
        left, singular, right = np.linalg.svd(wanted)
        nearest = left[:, :2] * singular[:2] @ right[:2]
        np.testing.assert_allclose(middle[name_b].astype(float) @ middle[name_a], nearest, atol=1e-5)
        missed, total = missed + np.square(singular[2:]).sum(), total + np.square(wanted).sum()
    assert error == pytest.approx(np.sqrt(missed / total), rel=1e-5)
    np.testing.assert_array_equal(middle[HEAD], np.median([site[HEAD] for site in sites], axis=0))


def test_factors_stay_trainable_when_the_product_is_zero_or_of_lower_rank() -> None:
    sent_a = np.random.default_rng(0).normal(size=(3, 6))
    for product in (np.zeros((4, 6)), np.outer(np.arange(4.0), np.arange(6.0))):
        a, b = best_factors(product, sent_a)
        np.testing.assert_allclose(b @ a, product, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(sent_a) / np.sqrt(3))


# --- Krum -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sites", "attackers"), [(5, 1), (9, 2), (11, 4)])
def test_krum_keeps_what_flowers_krum_keeps_on_the_dense_updates(sites: int, attackers: int) -> None:
    updates = {f"site-{seed:02d}": adapter(seed) for seed in range(sites)}
    geometry = Geometry({}, SCALE)
    contents = [
        RecordDict({"arrays": ArrayRecord({"w": _array(dense(update))}), "metrics": MetricRecord({"num-examples": place})})
        for place, update in enumerate(updates.values())
    ]
    for multi, count in ((False, 1), (True, sites - attackers - 2)):
        theirs = select_multikrum(contents, attackers, count)
        kept = {f"site-{content.metric_records['metrics']['num-examples']:02d}" for content in theirs}
        assert set(krum(updates, attackers, geometry, multi=multi)) == kept


def _array(values: np.ndarray):
    from flwr.app import Array

    return Array(values)


def test_krum_by_hand() -> None:
    places = np.array([0.0, 1.0, 2.5, 4.5, 100.0])
    scores = krum_scores(np.abs(places[:, None] - places), attackers=1)  # two neighbours each
    np.testing.assert_allclose(scores, [1 + 6.25, 1 + 2.25, 2.25 + 4, 4 + 12.25, 95.5**2 + 97.5**2])
    with pytest.raises(FedethosError, match="AGG-754"):
        krum_scores(np.zeros((4, 4)), attackers=1)


# --- norm bounding --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_long_update_ends_at_the_bound_and_a_short_one_is_untouched(seed: int) -> None:
    sent, update = adapter(100 + seed), adapter(seed)
    geometry = Geometry({}, SCALE)
    length = float(np.linalg.norm(dense(update) - dense(sent)))
    assert shortened(update, sent, geometry, length * 1.01) is update
    for bound in (0.9 * length, 0.1 * length):
        result = shortened(update, sent, geometry, bound)
        assert np.linalg.norm(dense(result) - dense(sent)) == pytest.approx(bound, rel=1e-5)


def test_with_a_frozen_it_is_the_division_of_sun_et_al() -> None:
    sent, update = adapter(1), adapter(2)
    geometry = Geometry({A: sent[A], A2: sent[A2]}, SCALE)
    length = geometry.distance(trained(update), trained(sent))
    result = shortened(trained(update), trained(sent), geometry, 0.5)
    np.testing.assert_allclose(result[B], sent[B] + (update[B] - sent[B]) / max(1.0, length / 0.5), rtol=1e-5)


def test_without_a_bound_the_median_norm_of_the_round_is_it() -> None:
    sent = adapter(0)
    steps = (1.0, 2.0, 3.0, 4.0, 1e6)
    updates = {str(step): sent | {HEAD: sent[HEAD] + np.float32([step, 0])} for step in steps}
    moved = [float(update[HEAD][0] - sent[HEAD][0]) for update in bounded(updates, sent, Geometry({}, SCALE), None).values()]
    assert moved == pytest.approx([1, 2, 3, 3, 3], rel=1e-4)


def test_where_most_sites_do_not_move_nobody_does() -> None:
    sent = adapter(0)
    updates = {"1": sent, "2": sent, "3": adapter(1)}
    np.testing.assert_array_equal(bounded(updates, sent, Geometry({}, SCALE), None)["3"][B], sent[B])


# --- the step as a whole --------------------------------------------------------------------------------------------------------

RULES = {
    "median": {},
    "trimmed-mean": {"trim_share": 0.25},
    "krum": {"assumed_attackers": 1},
    "multi-krum": {"assumed_attackers": 1},
    "norm-bound": {"norm_bound": 1.0},
}


@pytest.mark.parametrize("ffa", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_sites_that_agree_are_left_as_they_are(rule: str, ffa: bool) -> None:
    """Whatever the rule, the mean of what it hands on is the model that all sites sent."""
    sent = adapter(0)
    one = sent | {HEAD: sent[HEAD] + np.float32([0.3, -0.2]), B: sent[B] + np.float32(0.01)}
    frozen = {name: sent[name] for name in (A, A2)} if ffa else {}
    keep = trained if ffa else dict
    updates = {f"site-{number}": keep(one) for number in range(5)}
    shares = dict.fromkeys(updates, 0.2)
    defended = defend(job(rule, ffa=ffa, **RULES[rule]), updates, shares, keep(sent), frozen)
    result = weighted_mean(list(defended.updates.values()), [shares[name] for name in defended.updates])
    np.testing.assert_allclose(dense(result, frozen), dense(one), atol=2e-5)
    assert defended.error < 1e-6


@pytest.mark.parametrize("ffa", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_sign_flip_on_a_planted_problem_costs_a_robust_rule_less_than_averaging(rule: str, ffa: bool) -> None:
    """Five sites estimate one planted update with little noise; one sends ten times its opposite. Exact distances to the truth."""
    rng = np.random.default_rng(4)
    sent = adapter(0, spread=0.5)
    truth = {name: array + 0.05 * np.float32(np.sign(adapter(50)[name])) for name, array in sent.items()}
    frozen = {name: sent[name] for name in (A, A2)} if ffa else {}
    keep = trained if ffa else dict

    def site(number: int) -> Arrays:
        noisy = {name: (array + 0.005 * rng.normal(size=array.shape)).astype(np.float32) for name, array in truth.items()}
        return noisy if number else {name: sent[name] - 10 * (noisy[name] - sent[name]) for name in noisy}

    updates = {f"site-{number}": keep(site(number)) for number in range(5)}
    shares = dict.fromkeys(updates, 0.2)

    def damage(plan: Job) -> float:
        defended = defend(plan, updates, shares, keep(sent), frozen)
        result = weighted_mean(list(defended.updates.values()), [shares[name] for name in defended.updates])
        return float(np.linalg.norm(dense(result, frozen) - dense(keep(truth), frozen)))

    keys = {"norm_bound": None} if rule == "norm-bound" else RULES[rule]
    unharmed = float(np.linalg.norm(dense(keep(sent), frozen) - dense(keep(truth), frozen)))
    assert damage(job("none", ffa=ffa)) > 2 * unharmed  # averaging leads away from where the round began
    assert damage(job(rule, ffa=ffa, **keys)) < 0.5 * unharmed


@pytest.mark.parametrize(
    ("code", "keys"),
    [
        ("CFG-300", {"rule": "median", "trim_share": 0.2}),
        ("CFG-300", {"rule": "none", "norm_bound": 1.0}),
        ("CFG-301", {"rule": "trimmed-mean"}),
        ("CFG-301", {"rule": "krum"}),
        ("CFG-302", {"rule": "multi-krum", "assumed_attackers": 2}),
    ],
)
def test_keys_that_do_not_fit_the_rule_are_refused(code: str, keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as failure:
        job(**keys)
    assert [error["type"] for error in failure.value.errors()] == [code]
