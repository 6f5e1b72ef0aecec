"""What a job says about a unit's gradient beyond its clipping norm: how the norm is learned, and how clipped gradients are weighed.

The mathematics is in ``privacy/adaptive.py`` and ``privacy/clipping.py``; the order of the cells in ``fedethos/cells.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.section import PositiveFloat, Section


class AdaptiveClipping(Section):
    """The names of Opacus' ``AdaClipDPOptimizer``."""

    target_unclipped_quantile: float = Field(
        0.5, gt=0.0, lt=1.0, description="The clipping norm moves towards this quantile of the units' gradient norms."
    )
    clipbound_learning_rate: PositiveFloat = Field(0.2, description="Step of the clipping norm, on a log scale.")
    min_clipbound: PositiveFloat = Field(0.1, description="The clipping norm never goes below.")
    max_clipbound: PositiveFloat = Field(10.0, description="The clipping norm never goes above.")
    unclipped_num_std: PositiveFloat = Field(
        10.0,
        description="Noise on the number of units below the clipping norm, in units. Less noise here is more noise on the gradient.",
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> AdaptiveClipping:
        if self.min_clipbound > self.max_clipbound:
            raise PydanticCustomError("CFG-242", "privacy.adaptive.min_clipbound is above privacy.adaptive.max_clipbound.")
        return self


def check_cell_weights(
    named: Mapping[str, Mapping[str, float]], *, groups: Sequence[str], labels: Sequence[str], max_weight: float
) -> None:
    """Refuse weights of a job that name no cell, are out of range, or silence everybody.

    Raises
    ------
    PydanticCustomError
        CFG-244 for an unknown group or label, CFG-245 for a weight above ``max_weight``, CFG-246 when every cell weighs 0.
    """
    if any(group not in groups or any(label not in labels for label in by_label) for group, by_label in named.items()):
        raise PydanticCustomError(
            "CFG-244", "fairness.cell_weights names a group that is not declared for fairness.attribute, or a label that is not declared."
        )
    weights = [weight for by_label in named.values() for weight in by_label.values()]
    if any(weight > max_weight for weight in weights):
        raise PydanticCustomError("CFG-245", "A weight in fairness.cell_weights is above fairness.max_weight.")
    if len(weights) == len(groups) * len(labels) and not any(weights):
        raise PydanticCustomError("CFG-246", "Every weight in fairness.cell_weights is 0: nobody would train.")
