"""Weights of cells at a node: what is taken from a coordinator, what is refused, and the noise that goes with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedethos.cells import cell_count, constant_weights
from fedethos.client.cell_weights import accepted_weights, weighed
from fedethos.client.examples import Examples
from fedethos.client.node import Node
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.flower import identify_process
from fedethos.job import Job
from fedethos.messages import Request
from fedethos.privacy.plan import plan_training
from fedethos.progress import Silent
from fedethos.simulations.virtual_sites import open_federation

RICH_WOMEN = {"Female": {">50K": 1.8}}


@pytest.fixture
def job(write_job: Callable[..., Path]) -> Job:
    return load_job(write_job(fairness={"cell_weights": RICH_WOMEN}))


@contextmanager
def opened(job_file: Path, tmp_path: Path) -> Iterator[Node]:
    identify_process(run_id=1)
    with open_federation(
        load_job(job_file), base=tmp_path, scratch=tmp_path, ledger=tmp_path / "ledger.sqlite", observer=Silent()
    ) as federation:
        yield federation.nodes[1]


def request(node: Node, weights: tuple[float, ...] | None) -> Request:
    return Request(job_sha256=node.job.sha256, run="r", round=1, attempt=0, arrays=node.model.read(), cell_weights=weights)


def test_cells_are_groups_by_labels_with_unknown_last(job: Job) -> None:
    """Labels are <=50K, >50K; groups Female, Male, unknown."""
    assert cell_count(job) == 6
    assert constant_weights(job) == (1.0, 1.8, 1.0, 1.0, 1.0, 1.0)
    examples = Examples(None, np.array([0, 1, 0, 1, 1]), {"sex": np.array([0, 0, 1, 2, 1])}, np.arange(5))
    weights = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    np.testing.assert_array_equal(weighed(examples, weights, job).weight, [0.1, 0.2, 0.3, 0.6, 0.4])
    assert weighed(examples, None, job).weight is None


def test_another_attribute_can_be_weighed(write_job: Callable[..., Path]) -> None:
    sensitive = {"sex": ["Female", "Male"], "race": ["White", "Black", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other"]}
    job = load_job(write_job(data={"sensitive": sensitive}, fairness={"attribute": "race", "cell_weights": {"unknown": {"<=50K": 0.0}}}))
    assert constant_weights(job) == (1.0,) * 10 + (0.0, 1.0)


def test_no_weight_is_above_the_jobs_own_limit(job: Job) -> None:
    np.testing.assert_array_equal(accepted_weights((1e9, 0.0, 4.0, 3.9, 1.0, 5.0), job), [4.0, 0.0, 4.0, 3.9, 1.0, 4.0])


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        (None, "SEC-640"),
        ((1.0,) * 5, "SEC-641"),
        ((1.0,) * 7, "SEC-641"),
        ((), "SEC-641"),
        ((1.0, -1e-9, 1.0, 1.0, 1.0, 1.0), "SEC-642"),
        ((1.0, float("nan"), 1.0, 1.0, 1.0, 1.0), "SEC-642"),
        ((1.0, float("inf"), 1.0, 1.0, 1.0, 1.0), "SEC-642"),
        ((0.0,) * 6, "SEC-642"),
    ],
)
def test_other_weights_are_refused(job: Job, weights: tuple[float, ...] | None, code: str) -> None:
    with pytest.raises(FedethosError, match=code):
        accepted_weights(weights, job)


def test_weights_that_the_job_does_not_have_are_refused_before_anything_is_charged(write_job: Callable[..., Path], tmp_path: Path) -> None:
    with opened(write_job(), tmp_path) as node:
        with pytest.raises(FedethosError, match="SEC-640"):
            node.train(request(node, (1.0,) * 6))
        assert not node.ledger.drawn


@pytest.mark.parametrize(("asked", "largest"), [((1.0, 1e9, 1.0, 1.0, 1.0, 1.0), 4.0), ((0.5,) * 5 + (0.25,), 0.5)])
def test_the_noise_follows_the_bounded_weights_of_cells_with_nobody_in_them(
    write_job: Callable[..., Path], tmp_path: Path, asked: tuple[float, ...], largest: float
) -> None:
    """No record is at the site, so the update is the noise alone: z · C · largest weight / expected batch."""
    training = {"local_steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "head_learning_rate": 1.0}
    job_file = write_job(training=training, privacy={"max_grad_norm": 0.5}, fairness={"cell_weights": RICH_WOMEN})
    with opened(job_file, tmp_path) as node:
        node.examples = {**node.examples, "train": _nobody(node.examples["train"])}
        before = node.model.read()
        after = node.train(request(node, asked)).arrays
        noise = np.concatenate([(after[name] - before[name]).ravel() for name in before])
        plan = plan_training(node.job, declared_size=node.declared_size)
        expected = plan.noise_multiplier * 0.5 * largest / plan.expected_batch_size
        assert noise.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * noise.size))


def _nobody(examples: Examples) -> Examples:
    none = np.arange(0)
    return replace(examples, label=none, groups=dict.fromkeys(examples.groups, none), unit=none)
