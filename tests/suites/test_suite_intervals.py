import numpy as np
import pytest
from scipy import stats

from fedethos.fairness.suites.bootstrap import compare
from fedethos.fairness.suites.tally import Measure, Tally, ratio, share

ACCURACY = {"accuracy": share(1, 0)}


def tally(right: np.ndarray, each: int = 1) -> Tally:
    """Units of ``each`` items that are all right or all wrong."""
    return Tally(np.stack([np.full(len(right), float(each)), each * right.astype(float)], axis=1), ACCURACY)


def test_the_interval_of_a_share_is_that_of_the_binomial_distribution() -> None:
    right = np.arange(200) < 60
    found = compare(tally(right), tally(right), seed=1)["accuracy"].adapter
    exact = stats.binom.ppf([0.025, 0.975], 200, 0.3) / 200
    assert found.value == 0.3
    assert [found.low, found.high] == pytest.approx(exact, abs=0.006)  # a step of the distribution, and the resampling


def test_dependent_items_are_resampled_together() -> None:
    """Eight copies of a unit say no more than one: the interval is that of the units."""
    right = np.arange(50) < 20
    one, eight = (compare(tally(right, each), tally(right, each), seed=3)["accuracy"].adapter for each in (1, 8))
    assert (one.low, one.high) == (eight.low, eight.high)


def test_a_change_is_paired() -> None:
    """Both models are right on 100 of 200; on the same ones the change is certain to be small, on others it is not."""
    right = np.arange(200) % 2 == 0
    better = right | (np.arange(200) < 20)
    change = compare(tally(better), tally(right), seed=0)["accuracy"].change
    assert change.value == pytest.approx(0.05)
    # 10 of 200 differ, all in one direction: a binomial count
    assert [change.low, change.high] == pytest.approx(stats.binom.ppf([0.025, 0.975], 200, 0.05) / 200, abs=0.006)
    apart = compare(tally(right), tally(~right), seed=0)["accuracy"].change
    assert apart.low is not None and apart.high is not None and apart.high - apart.low > 0.25


def test_no_resample_that_differs_is_no_certainty() -> None:
    everything = compare(tally(np.ones(60, dtype=bool)), tally(np.ones(60, dtype=bool)), seed=0)["accuracy"]
    clopper_pearson = stats.beta.ppf(0.025, 60, 1)
    assert (everything.adapter.value, everything.adapter.high) == (1.0, 1.0)
    assert everything.adapter.low == pytest.approx(clopper_pearson)
    assert everything.change.value == 0.0
    assert everything.change.low is not None and everything.change.low < 0.0


def test_few_units_and_undefined_measures_abstain() -> None:
    few = tally(np.arange(9) < 4)
    assert compare(few, few, seed=0)["accuracy"].adapter.abstained
    never = Tally(np.zeros((40, 2)), {"rate": Measure(lambda sums: ratio(sums[..., 1], sums[..., 0]), 0.0, 1.0)})
    assert compare(never, never, seed=0)["rate"].change.abstained


def test_the_same_seed_gives_the_same_interval() -> None:
    right = np.arange(80) < 33
    assert compare(tally(right), tally(right), seed=5) == compare(tally(right), tally(right), seed=5)


def test_models_that_answered_other_units_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different units"):
        compare(tally(np.ones(20, dtype=bool)), tally(np.ones(21, dtype=bool)), seed=0)
