"""What a job says about the federation: sites, rounds, how updates become one, and what is done against sites that attack.

The mathematics is in ``strategies/``; what each aggregation rule trains and sends in ``fedethos/aggregation.py``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.aggregation import Aggregation
from fedethos.section import PositiveFloat, Section


class SitePlan(Section):
    weight: PositiveFloat = Field(1.0, description="Approved weight in the aggregation, before robustness.weight_cap.")
    declared_size: int | None = Field(None, ge=1, description="Training units that the site declares as public.")
    rank: int | None = Field(None, ge=1, description="flexlora: the site's own rank, at most lora.r; null: lora.r.")


class EarlyStop(Section):
    metric: Literal["worst_group_accuracy", "balanced_accuracy", "roc_auc", "accuracy"] = Field(
        "worst_group_accuracy", description="Watched on the validation people of all sites."
    )
    patience: int = Field(3, ge=1, description="Rounds without a gain of min_delta before the run stops.")
    min_delta: float = Field(0.0, ge=0.0, description="Smallest gain that counts.")


_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(s|m|h)$")


def _duration(value: object) -> object:
    """'90s', '30m' or '2h' to seconds; a number is seconds already."""
    match = _DURATION.match(value) if isinstance(value, str) else None
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else value


class Federation(Section):
    rounds: int = Field(5, ge=1, le=10_000, description="Epsilon is planned over all of them.")
    aggregation: Literal["auto"] | Aggregation = Field(
        "auto", description="auto: ffa (A frozen) for LoRA under privacy, else fedavg. Tabular models have fedavg alone."
    )
    server_optimizer: Literal["none", "fedadam", "fedyogi", "fedadagrad", "fedavgm"] = Field(
        "none", description="Flower's own over the averages; with aggregation fedavg or ffa."
    )
    server_learning_rate: PositiveFloat | None = Field(None, description="Step of the server optimizer; null: 0.01, of fedavgm 1.")
    server_momentum: float = Field(0.9, ge=0.0, lt=1.0, description="fedavgm: share of the last step that goes on.")
    sites: dict[str, SitePlan] = Field(default_factory=dict, description="Approved sites; empty in a simulation.")
    min_sites: int = Field(3, ge=1, description="Quorum: a round with fewer valid replies fails.")
    fraction: float = Field(1.0, gt=0.0, le=1.0, description="Share of the sites asked to train in a round.")
    deadline: Annotated[float, Field(gt=0.0), BeforeValidator(_duration)] = Field(
        1800.0, description="How long a round waits for replies: seconds, or '90s', '30m', '2h'."
    )
    early_stop: EarlyStop | None = None


RobustRule = Literal["none", "median", "trimmed-mean", "krum", "multi-krum", "norm-bound"]
_KEY_OF_RULE = {"trim_share": ("trimmed-mean",), "assumed_attackers": ("krum", "multi-krum"), "norm_bound": ("norm-bound",)}


class Robustness(Section):
    rule: RobustRule = Field("none", description="What is done to the updates before aggregation, against sites that attack.")
    trim_share: float | None = Field(
        None, gt=0.0, lt=0.5, description="trimmed-mean: share of the weight that is cut off at each end of every coordinate."
    )
    assumed_attackers: int | None = Field(None, ge=0, description="krum, multi-krum: f; federation.min_sites must be 2f + 3 or more.")
    norm_bound: PositiveFloat | None = Field(
        None, description="norm-bound: updates of the model are shortened to this norm; null: to the median norm of the round."
    )
    max_update_norm: PositiveFloat | None = Field(None, description="A reply that moves the adapter further (L2) is refused.")
    weight_cap: float = Field(0.5, gt=0.0, le=1.0, description="No site weighs more than this share.")

    @model_validator(mode="after")
    def _keys_belong_to_the_rule(self) -> Robustness:
        for key, rules in _KEY_OF_RULE.items():
            if getattr(self, key) is not None and self.rule not in rules:
                raise PydanticCustomError("CFG-300", f"robustness.{key} belongs to the rule {' or '.join(rules)}, which is not chosen.")
        if self.rule == "trimmed-mean" and self.trim_share is None:
            raise PydanticCustomError("CFG-301", "robustness.rule trimmed-mean needs robustness.trim_share.")
        if self.rule in ("krum", "multi-krum") and self.assumed_attackers is None:
            raise PydanticCustomError("CFG-301", f"robustness.rule {self.rule} needs robustness.assumed_attackers.")
        return self
