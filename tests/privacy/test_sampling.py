"""Group-balanced sampling: hand-worked rates, and the highest of them is what a site pays for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

from fedethos.documents import load_job
from fedethos.job import Job
from fedethos.privacy.events import TrainingSteps
from fedethos.privacy.plan import expected_batch_size_of, plan_training, sampling_rate_of
from fedethos.privacy.planner import allotments
from fedethos.privacy.sampling import group_rates

SHARES = {"Female": {"<=50K": 0.15, ">50K": 0.05}, "Male": {"<=50K": 0.55, ">50K": 0.25}}  # a fifth are women


def job(write_job: Callable[..., Path], shares: dict[str, dict[str, float]] = SHARES, **fairness: object) -> Job:
    training = {"batch_size": 40, "sampling": "group_balanced"}
    return load_job(write_job(training=training, fairness={"training_shares": shares, **fairness}))


def test_a_batch_holds_as_many_of_each_group(write_job: Callable[..., Path]) -> None:
    """1,000 people, 40 a batch: 20 of 200 women, 20 of 800 men; q is .04."""
    balanced = job(write_job)
    assert group_rates(balanced, 1000) == pytest.approx((0.1, 0.025, 0.04))
    assert sampling_rate_of(balanced, 1000) == pytest.approx(0.1)
    assert expected_batch_size_of(balanced, 1000) == pytest.approx(40)


def test_no_rate_is_above_one_or_above_the_largest_weight(write_job: Callable[..., Path]) -> None:
    bounded = job(write_job, max_weight=2.0)
    assert group_rates(bounded, 1000) == pytest.approx((0.08, 0.025, 0.04))
    assert expected_batch_size_of(bounded, 1000) == pytest.approx(0.08 * 200 + 0.025 * 800)
    assert group_rates(job(write_job), 50) == pytest.approx((1.0, 0.5, 0.8))


def test_unknown_is_sampled_as_everybody(write_job: Callable[..., Path]) -> None:
    shares = {"Female": {"<=50K": 0.1, ">50K": 0.1}, "Male": {"<=50K": 0.35, ">50K": 0.35}, "unknown": {"<=50K": 0.05, ">50K": 0.05}}
    with_unknown = job(write_job, shares)
    assert group_rates(with_unknown, 1000) == pytest.approx((0.04 * 0.9 / 0.4, 0.04 * 0.9 / 1.4, 0.04))
    assert expected_batch_size_of(with_unknown, 1000) == pytest.approx(40)


def test_the_highest_rate_is_paid_for(write_job: Callable[..., Path]) -> None:
    balanced = job(write_job)
    (event,) = [one.event for one in allotments(balanced, declared_size=1000) if isinstance(one.event, TrainingSteps)]
    assert event.sampling_rate == pytest.approx(0.1)
    steps = balanced.federation.rounds * balanced.training.local_steps
    spent = {}
    for rate in (0.04, 0.1):
        loss = from_gaussian_mechanism(event.noise_multiplier, sampling_prob=rate).self_compose(steps)
        spent[rate] = loss.get_epsilon_for_delta(balanced.privacy.delta)
    assert spent[0.1] == pytest.approx(8.0, rel=5e-3), "a woman's epsilon is the job's"
    assert spent[0.04] < 0.8 * 8.0, "what accounting at the uniform rate would have claimed"
    assert plan_training(balanced, declared_size=1000).expected_batch_size == pytest.approx(40)
