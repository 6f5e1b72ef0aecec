"""The benchmark trains as a run does, gives every variant the same start, and its intervals are the textbook's."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fedethos.aggregation import HEAD_CENTER
from fedethos.documents import load_job
from fedethos.progress import Silent
from fedethos.simulations.benchmarks import small_data
from fedethos.simulations.benchmarks.small_data import Outcome
from fedethos.simulations.engine import simulate


@pytest.mark.parametrize(("aggregation", "center_head"), [("fedavg", "off"), ("ffa", "off"), ("ffa", "on")])
def test_its_rounds_end_with_the_adapter_of_a_run(write_job, tmp_path: Path, aggregation: str, center_head: str) -> None:
    """Also after another variant has used the same federation."""
    recipe = {"head_warmup_rounds": 1, "iterate_average": "tail", "center_head": center_head}
    job = load_job(write_job(federation={"aggregation": aggregation}, training=recipe))
    simulate(job, tmp_path / "run", base=tmp_path, observer=Silent())
    run = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    whole = load_job(write_job(federation={"aggregation": "fedavg"}, training={"center_head": center_head}))
    with small_data.opened(whole, tmp_path) as federation:
        start, center = federation.model.read(), federation.model.center
        other = load_job(write_job(federation={"aggregation": "ffa"}, training={"center_head": center_head}))
        for each in (other, job):
            ours = small_data.train(federation, start, each)
        if center is not None:
            federation.model.load(ours)
            trained = {name: torch.from_numpy(array) for name, array in ours.items() if name != HEAD_CENTER}
            ours = {name: tensor.numpy() for name, tensor in center.folded(trained).items()}
    assert set(ours) == set(run)
    for name, value in run.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def outcomes(variant: str, *aucs: float, scale: float = 1.0) -> list[Outcome]:
    return [Outcome(variant, 1.0, seed, scale, auc, 0.5) for seed, auc in enumerate(aucs)]


def test_the_interval_is_the_paired_t_interval() -> None:
    """Gains .01, .02, .03: mean .02, standard error .01/√3, t(2, .975) = 4.3027, half-width .0248."""
    (*_, line) = small_data.table([*outcomes("fedavg", 0.6, 0.7, 0.8), *outcomes("other", 0.61, 0.72, 0.83)])
    assert line == "| 1 | other | 1 | 3 | 0.720 | 0.500 | +0.020 (-0.005 to +0.045) |"


def test_each_variant_runs_with_its_own_better_learning_rate() -> None:
    tuned = [*outcomes("a", 0.6), *outcomes("a", 0.7, scale=2.5), *outcomes("b", 0.8), *outcomes("b", 0.7, scale=2.5)]
    assert small_data.best_scales(tuned) == {("a", 1.0): 2.5, ("b", 1.0): 1.0}


def test_its_default_is_what_a_job_does_that_says_nothing_and_declares_its_sites() -> None:
    sites = {f"site-{number}": {"declared_size": 600} for number in range(1, 7)}
    demo = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))
    job = load_job(demo, [f"federation.sites={json.dumps(sites)}", "federation.rounds=5", "privacy.epsilon=1"])
    default = small_data.DEFAULT
    assert (job.aggregation, job.head_warmup_rounds, job.center_head) == (default.aggregation, default.head_warmup_rounds, True)


def test_every_variant_is_a_job() -> None:
    for variant in small_data.VARIANTS:
        job = small_data.job_of(1, variant, 1.0, 2.0)
        assert (job.aggregation, job.training.head_warmup_rounds) == (variant.aggregation, variant.head_warmup_rounds)
        assert job.training.learning_rate == pytest.approx(0.01)
