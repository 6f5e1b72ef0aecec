"""What a job says about fairness: decision thresholds, weights of groups, and what the organisation allows. See ``fairness/``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedethos.job_augment import TermLists
from fedethos.section import PositiveFloat, Section


class Fairness(Section):
    thresholds: Literal["pooled", "fixed", "demographic_parity", "equal_opportunity", "equalized_odds"] = Field(
        "pooled",
        description="pooled: one threshold from the pooled validation histogram at the base rate. "
        "fixed: the most likely label, for two labels a score of 0.5. "
        "The others give each group its own, so that its rate is that of the others; only if the policy allows it.",
    )
    loss: Literal["none", "reweighing", "group_dro", "counterfactual_consistency", "focal"] = Field(
        "none", description="What training minimises. none: cross-entropy. reweighing and group_dro weigh clipped gradients by group."
    )
    focal_gamma: float = Field(2.0, ge=0.0, le=10.0, description="focal: the larger, the less counts what the model already knows.")
    consistency_weight: PositiveFloat = Field(
        1.0, description="counterfactual_consistency: weight of the divergence between a record's prediction and its copy's."
    )
    training_shares: dict[str, dict[str, Annotated[float, Field(gt=0.0, le=1.0)]]] | None = Field(
        None,
        description="Group to label to its public share of the training people, for reweighing and group_balanced. "
        "null: reweighing asks for counts of the training people once, before training.",
    )
    strategy: Literal["none", "controller", "fedfb", "fedminmax", "term", "fairfed", "afl", "qfedavg"] = Field(
        "none",
        description="Weights from counts of the training people. In training, controller and fedfb weigh groups to close a gap, "
        "fedminmax and term those that the model is often wrong about. In the aggregation, fairfed weighs sites by their gap, afl and "
        "qfedavg by errors.",
    )
    constraint: Literal["demographic_parity", "equal_opportunity", "equalized_odds", "worst_group"] = Field(
        "equal_opportunity", description="What the strategy equalises over the groups of fairness.attribute."
    )
    every: int = Field(
        2, ge=1, description="The strategy, or group_dro, asks for counts of the training people after every so many rounds."
    )
    learning_rate: PositiveFloat | None = Field(
        None,
        description="Step of the weights for a gap of 1. null: 3 for controller and, for 1 nat of loss, group_dro (on a log scale), 1 for "
        "fairfed (its beta), 0.1 for fedminmax and afl, 0.01 for fedfb (its alpha, whatever the gap).",
    )
    q: float = Field(1.0, ge=0.0, le=10.0, description="qfedavg: a site counts by its risk to this power; 0 is FedAvg.")
    tilt: float = Field(5.0, gt=0.0, le=50.0, description="term: t; a group weighs exp(t times its risk).")
    attribute: str | None = Field(
        None,
        description="The attribute that weights and thresholds act on, or an intersection (sex*race); null: the first of data.sensitive.",
    )
    intersections: list[list[str]] = Field(
        default_factory=list,
        description="Measured beside data.sensitive: [[sex, race]] counts every combination, as the attribute sex*race.",
    )
    max_weight: float = Field(
        4.0,
        ge=1.0,
        allow_inf_nan=False,
        description="No cell weighs more, whatever the coordinator asks for, and no group is sampled so many times as often as uniformly.",
    )
    cell_weights: dict[str, dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]] | None = Field(
        None,
        description="Group to label to the weight of its people's clipped gradients; a missing cell weighs 1. null: no weights.",
    )
    augment: Literal["none", "counterfactual"] = Field(
        "none", description="counterfactual: train on a copy of each record with the sensitive attribute swapped too, in the same unit."
    )
    identity_terms: TermLists = Field(
        None, description="Words that show a sensitive attribute: builtin:sex, a YAML file, or {attribute: [[term, counterpart], …]}."
    )

    @property
    def steers(self) -> bool:
        """Whether counts of the training people move weights from round to round."""
        return self.strategy != "none" or self.loss == "group_dro"

    @property
    def group_constraint(self) -> Literal["demographic_parity", "equal_opportunity", "equalized_odds"] | None:
        """The rate that group-specific thresholds equalise; None when everybody has the same threshold."""
        return None if self.thresholds == "pooled" or self.thresholds == "fixed" else self.thresholds  # noqa: PLR1714 - narrows the type


class Policy(Section):
    """What the organisation that runs the job has decided beforehand."""

    allow_group_thresholds: bool = Field(False, description="Decisions may use the sensitive attribute: a threshold for each group.")
    allow_randomized_decisions: bool = Field(False, description="Group thresholds may leave some decisions to a coin.")
    reason: str = Field(min_length=1, description="Why this is allowed, and who has said so.")
