"""A robust rule together with a fairness strategy: neither disturbs the other, and the pair survives an attacker."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.simulations.tabular import TABULAR

from fedethos.documents import load_job
from fedethos.progress import Silent
from fedethos.records import SimulatedAttack
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate

TRAINED = {**TABULAR, "training": {"local_steps": 10, "learning_rate": 0.05}}
LORA = {"lora": {"r": 2}, "training": {"local_steps": 2, "batch_size": 32, "learning_rate": 0.01}}
FIVE = {
    "privacy": {"mode": "none", "epsilon": None},
    "federation": {"rounds": 3, "min_sites": 4},
    "simulation": {"sites": 5, "partition": {"kind": "iid"}},
}


def run(job_file: Path, out: Path, attack: SimulatedAttack | None = None) -> tuple[list[dict[str, object]], dict[str, np.ndarray]]:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), attack=attack)
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    return lines, load_file(out / "checkpoints/round-0003/arrays.safetensors")


def _numbers(weights: dict[str, object]) -> Iterator[float]:
    for value in weights.values():
        yield from _numbers(value) if isinstance(value, dict) else [float(value)]


@pytest.mark.parametrize(("model", "strategy"), [(TRAINED, "fairfed"), (TRAINED, "qfedavg"), (LORA, "controller")])
def test_a_rule_that_never_binds_leaves_a_strategy_as_it_is(write_job, tmp_path: Path, model: dict[str, object], strategy: str) -> None:
    fairness = {"strategy": strategy, "every": 1, "thresholds": "fixed", "attribute": "sex"}
    runs = []
    for name, robustness in (("none", {"rule": "none"}), ("bound", {"rule": "norm-bound", "norm_bound": 1e6})):
        runs.append(run(write_job(**model, **FIVE, fairness=fairness, robustness=robustness), tmp_path / name))
    key = "weights" if strategy == "controller" else "site_weights"
    assert runs[0][0][3][key] != runs[0][0][1].get(key)  # the strategy moved something
    moved = [list(_numbers(lines[3][key])) for lines, _ in runs]
    np.testing.assert_allclose(moved[1], moved[0], atol=1e-3)
    for name, array in runs[0][1].items():
        np.testing.assert_allclose(runs[1][1][name], array, atol=1e-4)


@pytest.mark.parametrize(("rule", "keys"), [("median", {}), ("krum", {"assumed_attackers": 1})])
def test_a_controller_goes_on_behind_a_rule_that_keeps_an_attacker_out(
    write_job, tmp_path: Path, rule: str, keys: dict[str, object]
) -> None:
    """One of five sites sends its update backwards, ten times as long: without a rule the model is worse than guessing."""
    fairness = {"strategy": "controller", "every": 1, "thresholds": "fixed", "attribute": "sex"}
    federation = {**FIVE["federation"], "min_sites": 5}
    attack = SimulatedAttack(kind="sign-flip", share=0.2)
    auc = {}
    for name, robustness in (("none", {"rule": "none"}), (rule, {"rule": rule, **keys})):
        job_file = write_job(
            **TRAINED, **{**FIVE, "federation": federation}, fairness=fairness, robustness={**robustness, "weight_cap": 0.25}
        )
        lines, _ = run(job_file, tmp_path / name, attack)
        auc[name] = RunFolder(tmp_path / name).read_result().oracle.metrics.roc_auc
    weights = [weight for labels in lines[3]["weights"].values() for weight in labels.values()]
    assert max(weights) > 1.0 > min(weights)
    assert auc["none"] < 0.5
    assert auc[rule] > 0.75
