from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedethos.aggregation import layers_of
from fedethos.strategies.averaging import aggregation_error, capped_shares, weighted_mean


def test_weighted_mean_by_hand() -> None:
    updates = [{"w": np.float32([1, 2])}, {"w": np.float32([5, 10])}]
    mean = weighted_mean(updates, [3, 1])
    assert mean["w"].dtype == np.float32
    np.testing.assert_array_equal(mean["w"], [2, 4])


def test_weighted_mean_does_not_depend_on_small_rounding() -> None:
    updates = [{"w": np.float32([1e8])}, {"w": np.float32([1.0])}, {"w": np.float32([-1e8])}]
    assert weighted_mean(updates, [1, 1, 1])["w"][0] == pytest.approx(1 / 3, rel=1e-6)


def test_cap_by_hand() -> None:
    shares = capped_shares({"big": 90, "mid": 6, "small": 4}, 0.5)
    assert shares == pytest.approx({"big": 0.5, "mid": 0.3, "small": 0.2})


def test_cap_may_bind_twice() -> None:
    shares = capped_shares({"a": 60, "b": 30, "c": 5, "d": 5}, 0.4)
    assert shares == pytest.approx({"a": 0.4, "b": 0.4, "c": 0.1, "d": 0.1})


def test_too_few_sites_for_the_cap_weigh_the_same() -> None:
    assert capped_shares({"a": 9, "b": 1}, 0.3) == {"a": 0.5, "b": 0.5}


@given(weights=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=12), cap=st.floats(0.01, 1.0))
def test_shares_sum_to_one_and_keep_cap_and_order(weights: list[float], cap: float) -> None:
    shares = capped_shares({str(index): weight for index, weight in enumerate(weights)}, cap)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert max(shares.values()) <= max(cap, 1 / len(weights)) + 1e-9
    ordered = [shares[str(index)] for index in np.argsort(weights)]
    assert all(left <= right + 1e-9 for left, right in pairwise(ordered))


A, B = "base.layer.5.lora_A.weight", "base.layer.5.lora_B.weight"


def random_adapter(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {A: rng.normal(size=(2, 5)).astype(np.float32), B: rng.normal(size=(4, 2)).astype(np.float32)}


def test_layers_by_name() -> None:
    assert layers_of({A, B, "classifier.weight", "base.layer.5.residual_A.weight"}) == ["base.layer.5"]


def test_error_is_the_distance_to_the_mean_product() -> None:
    rng = np.random.default_rng(0)
    one, two = random_adapter(rng), random_adapter(rng)
    aggregated = weighted_mean([one, two], [1, 3])
    mean = 0.25 * one[B] @ one[A] + 0.75 * two[B] @ two[A]
    expected = np.linalg.norm(aggregated[B] @ aggregated[A] - mean) / np.linalg.norm(mean)
    assert aggregation_error(one, [one, two], [1, 3], aggregated, {}) == pytest.approx(expected, rel=1e-5)


def test_no_error_when_sites_agree_or_a_is_frozen() -> None:
    rng = np.random.default_rng(1)
    one, two = random_adapter(rng), random_adapter(rng)
    assert aggregation_error(two, [one, one], [1, 1], one, {}) == pytest.approx(0.0, abs=1e-7)
    frozen = {A: one[A]}
    updates = [{B: one[B]}, {B: two[B]}]
    assert aggregation_error({B: two[B]}, updates, [1, 1], weighted_mean(updates, [1, 1]), frozen) == pytest.approx(0.0, abs=1e-6)
