"""Ethics losses: gradients by finite differences, values by the papers' formulas, and nobody's loss reads another unit."""

from typing import get_args

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from fedethos.fairness.losses import LOSSES, LossName, counterfactual_consistency, cross_entropy, focal
from fedethos.job_fairness import Fairness

LABELS = torch.tensor([0, 2, 1, 2, 0])
ORIGINAL = torch.tensor([0, 1, 0, 3, 1])  # rows 2 and 4 are copies of rows 0 and 1


def logits(scale: float = 2.0) -> torch.Tensor:
    return (scale * torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))).requires_grad_()


def test_the_registry_holds_the_losses_that_a_job_may_name() -> None:
    assert set(LOSSES) == set(get_args(LossName)) == set(get_args(Fairness.model_fields["loss"].annotation))
    with pytest.raises(ValueError, match="loss"):
        Fairness(loss="adversarial")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [{"loss": name} for name in LOSSES]
    + [{"loss": "focal", "focal_gamma": gamma} for gamma in (0.0, 0.5, 1.0, 5.0)]
    + [{"loss": "counterfactual_consistency", "consistency_weight": 10.0}],
)
def test_gradients_agree_with_finite_differences(settings: dict[str, object]) -> None:
    fairness = Fairness.model_validate(settings)
    loss = LOSSES[fairness.loss](fairness)
    assert torch.autograd.gradcheck(lambda values: loss(values, LABELS, ORIGINAL), (logits(),), atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_is_that_of_the_paper(gamma: float) -> None:
    values = logits()
    p = softmax(values.detach().numpy(), axis=1)[np.arange(5), LABELS]
    np.testing.assert_allclose(focal(values, LABELS, ORIGINAL, gamma=gamma).detach(), -((1 - p) ** gamma) * np.log(p), rtol=1e-12)


def test_focal_loss_trains_on_a_record_that_the_model_is_sure_of() -> None:
    """At p = 1 in floating point a power below 1 has no derivative; the unit must not become NaN."""
    values = torch.tensor([[60.0, 0.0], [0.0, 60.0]], requires_grad=True)
    focal(values, torch.tensor([0, 0]), torch.arange(2), gamma=0.5).sum().backward()
    assert torch.isfinite(values.grad).all()
    assert values.grad[1].abs().sum() == pytest.approx(2.0, rel=1e-6)  # surely wrong: the full gradient of cross-entropy


def test_consistency_is_the_symmetric_divergence_of_a_copy_from_its_original() -> None:
    values = logits()
    p = softmax(values.detach().numpy(), axis=1)
    expected = [entropy(p[row], p[original]) + entropy(p[original], p[row]) for row, original in enumerate(ORIGINAL.tolist())]
    extra = counterfactual_consistency(values, LABELS, ORIGINAL, weight=3.0) - cross_entropy(values, LABELS, ORIGINAL)
    np.testing.assert_allclose(extra.detach(), 3.0 * np.array(expected), rtol=1e-9, atol=1e-12)
    assert expected[0] == expected[1] == expected[3] == 0.0


@pytest.mark.parametrize("name", list(LOSSES))
def test_no_loss_reads_a_record_of_another_unit(name: LossName) -> None:
    """Rows 0 and 2 are one unit, rows 1 and 4 another, row 3 a third."""
    values = logits()
    losses = LOSSES[name](Fairness())(values, LABELS, ORIGINAL)
    for unit in ([0, 2], [1, 4], [3]):
        (gradient,) = torch.autograd.grad(losses[unit].sum(), values, retain_graph=True)
        others = [row for row in range(5) if row not in unit]
        assert not gradient[others].any()
        assert gradient[unit].any()
