"""The benchmark compares like with like."""

from __future__ import annotations

import pytest
import torch

from fedethos.simulations.benchmarks import privacy_step
from fedethos.simulations.benchmarks.privacy_step import Setting


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
