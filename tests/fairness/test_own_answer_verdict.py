"""Tables of records that bring their own right answer have one label: rates come out, and no verdict pretends to more."""

import numpy as np
import pytest

from fedethos.fairness.layout import Layout
from fedethos.fairness.summary import summarise


@pytest.mark.parametrize("noise_variance", [0.0, 4.0])
def test_one_label_gives_accuracies_and_their_gap(noise_variance: float) -> None:
    right = np.array([[30, 70], [60, 40], [0, 0]], dtype=np.int64)[:, None, :]  # (wrong, right) of two groups and unknown
    layout = Layout(cuts=(32,), edge=32)
    shapes = layout.shapes({"sex": ["female", "male"]}, labels=1)
    assert shapes == {":scores": (1, 2), "sex": (3, 1, 2)}
    tables = {":scores": right.sum(axis=0), "sex": right}
    found = summarise(
        tables, edge=None, categories={"sex": ["female", "male"]}, label_values=["right"], favorable="right",
        min_group_size=11, tolerance=0.5, noise_variance=noise_variance,
    )  # fmt: skip
    assert found.metrics["accuracy"].value == pytest.approx(0.55)
    assert found.metrics["worst_group_accuracy"].value == pytest.approx(0.4)
    assert found.fairness["sex"].gaps["demographic_parity_difference"].value == pytest.approx(0.3)
    assert np.isnan(found.metrics["roc_auc"].value or np.nan)
    verdict = found.fairness["sex"].verdict
    assert verdict.status == "none"
    assert "its own right answer" in verdict.sentence
