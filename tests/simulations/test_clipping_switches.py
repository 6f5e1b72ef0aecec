"""Clipping rules and cell weights as switches of whole runs: they change what is learned, and not what it costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedethos.documents import load_job
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate

Adapter = dict[str, np.ndarray]


@pytest.fixture
def run(write_job: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Adapter, dict[str, object]]]:
    def go(name: str, *overrides: str) -> tuple[Adapter, dict[str, object]]:
        job_file = write_job(federation={"rounds": 1}, training={"local_steps": 3, "optimizer": "sgd", "learning_rate": 0.5})
        out = tmp_path / name
        simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=Silent(), wire=True)
        return load_file(out / "adapter" / "adapter_model.safetensors"), json.loads((out / "privacy.json").read_text())

    return go


def difference(one: Adapter, other: Adapter) -> float:
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


def test_switches_change_the_training_and_not_its_price(run: Callable[..., tuple[Adapter, dict[str, object]]]) -> None:
    flat, paid = run("flat")
    ones, _ = run("ones", "fairness.cell_weights={}")
    assert difference(flat, ones) == 0.0
    fused, _ = run("fused", "privacy.clipping=automatic")
    opacus, _ = run("opacus", "privacy.clipping=automatic", "privacy.engine=opacus")
    assert difference(fused, opacus) < 1e-4 < difference(fused, flat)
    learned, adaptive = run("adaptive", "privacy.clipping=adaptive")
    weighed, weights = run("weighed", "fairness.cell_weights={Female: {'>50K': 1.8}}")
    assert min(difference(learned, flat), difference(weighed, flat)) > 1e-4
    assert adaptive["sites"] == weights["sites"] == paid["sites"]  # the same noise multiplier and the same epsilon
    assert "cell with the largest weight" in weights["statement"]
    assert "cell" not in paid["statement"]


def test_without_privacy_the_weights_act_as_well(run: Callable[..., tuple[Adapter, dict[str, object]]]) -> None:
    plain, _ = run("plain", "privacy.mode=none")
    weighed, _ = run("weighed", "privacy.mode=none", "fairness.cell_weights={Female: {'>50K': 1.8}}")
    assert difference(plain, weighed) > 1e-4
