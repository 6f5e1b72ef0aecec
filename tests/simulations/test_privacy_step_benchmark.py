"""The benchmark compares like with like."""

from __future__ import annotations

import pytest
import torch

from fedethos.privacy.fused import FusedEngine
from fedethos.simulations.benchmarks import privacy_step, private_parts
from fedethos.simulations.benchmarks.privacy_step import Setting
from fedethos.simulations.benchmarks.row import alone, compared, line


def test_every_variant_but_the_private_ones_computes_the_same_gradient():
    setting = Setting("smoke", "encoder", batch=2)
    plain, opened = (privacy_step._training(setting, variant) for variant in ("peft", "fused-open"))
    privacy_step._plain_step(plain)
    privacy_step._fuse_without_privacy(opened)
    privacy_step._open_step(opened)
    for name, parameter in plain.trained.items():
        assert torch.allclose(opened.trained[name].grad, parameter.grad, rtol=1e-3, atol=1e-6), name


def test_rows_have_the_keys_that_bench_json_needs():
    found = privacy_step.rows([Setting("smoke", "encoder", batch=2, time_limit=1e9)], repeats=1, memory=False)
    assert [row["name"] for row in found] == [f"dp_step_vs_peft/smoke{rest}" for rest in ("", "/fused-open", "/opacus")]
    assert found[0]["holds"] is True
    assert found[1]["holds"] is None
    assert all(row["part"] == "privacy" and row["ratio"] == pytest.approx(row["ours"] / row["reference"]) for row in found)


def test_a_person_of_four_records_is_clipped_as_one_unit():
    setting = Setting("smoke", "encoder", batch=4)
    training = privacy_step._training(setting, "fused")
    engine = FusedEngine(1.0)
    engine.attach(training.model, training.trained)
    norms = []
    for rows_per_unit in (1, 4):
        engine.reset()
        engine.backward(training.per_example_loss(), torch.arange(4) // rows_per_unit)
        norms.append(sum(float(total.square().sum()) for total in engine.clipped_sum().values()) ** 0.5)
    assert norms[1] <= 1.0 < norms[0]


def test_a_row_says_whether_its_limit_holds():
    assert compared("privacy", "step", 9.0, 10.0, limit=0.95)["holds"] is True
    assert compared("privacy", "step", 9.0, 10.0, ratio=0.96, limit=0.95)["holds"] is False
    assert compared("privacy", "step", 9.0, 10.0)["holds"] is None
    missed = alone("privacy", "milliseconds", 6.0, limit=5.0)
    assert missed["holds"] is False
    assert line(missed).endswith("6.0000  limit 5.00  MISSED")


def test_sorted_micro_batches_waste_less_than_half():
    assert private_parts._padding()["holds"]
