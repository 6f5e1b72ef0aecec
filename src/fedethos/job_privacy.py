"""What a job says about privacy: whose, how much, and how gradients are bounded. The mathematics is in ``privacy/``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.job_clipping import AdaptiveClipping
from fedethos.section import PositiveFloat, Section


class Metrics(Section):
    min_group_size: int = Field(11, ge=1, description="Smaller groups are not shown.")
    tolerance: PositiveFloat = Field(0.1, description="A fairness metric whose 95 % half-width is larger is 'not measurable'.")
    epsilon_share: float = Field(
        0.3,
        ge=0.01,
        le=0.9,
        description="Share of epsilon for counts that are paid together with training: of training people, and under replace-one all.",
    )
    baseline: bool = Field(
        False, description="Also release counts under the untrained model, a second charge on the same people: all counts take more noise."
    )


class Privacy(Section):
    mode: Literal["none", "local"] = Field("local", description="local: each site adds its own noise. none: no protection.")
    unit: Literal["auto", "person", "record"] = Field("auto", description="auto: person when data.person_id is mapped, else record.")
    adjacency: Literal["add-remove", "replace-one"] = Field(
        "add-remove", description="What epsilon compares: data with and without one unit, or with one unit replaced (costs more)."
    )
    max_records_per_person: int = Field(
        4,
        ge=1,
        description="Under the unit person: the most records of one person that take part. Counts need more noise with more.",
    )
    epsilon: float | None = Field(8.0, gt=0.0, le=50.0, description="Per site, over the whole job. null only with mode: none.")
    delta: float = Field(1.0e-5, gt=0.0, lt=0.01, description="Chance that epsilon does not hold; well below one in the number of people.")
    max_grad_norm: PositiveFloat = Field(1.0, description="C: each unit's gradient is clipped to this L2 norm.")
    clipping: Literal["flat", "automatic", "adaptive"] = Field(
        "flat",
        description="flat: scale down gradients above C. automatic: scale every gradient to about C (AUTO-S). "
        "adaptive: learn C in each round, from max_grad_norm on.",
    )
    adaptive: AdaptiveClipping = Field(default_factory=AdaptiveClipping)
    engine: Literal["fused", "opacus"] = Field(
        "fused", description="What bounds each unit's gradient: fused into the LoRA layers (fast), or Opacus' hooks. Same numbers."
    )
    secure_rng: Literal["auto", True, False] = Field("auto", description="auto: off in a simulation (marked as such), on in deployment.")
    metrics: Metrics = Field(default_factory=Metrics)

    def secure(self, *, deployed: bool) -> bool:
        """Whether noise and samples come from the operating system's generator, and not from the job's seed."""
        return deployed if self.secure_rng == "auto" else self.secure_rng

    @model_validator(mode="after")
    def _epsilon_belongs_to_a_mode(self) -> Privacy:
        if self.mode != "none" and self.epsilon is None:
            raise PydanticCustomError("CFG-222", "privacy.epsilon is null, but privacy.mode is not none.")
        return self

    @model_validator(mode="after")
    def _clipping_fits(self) -> Privacy:
        if self.clipping != "adaptive" and self.adaptive != AdaptiveClipping():
            raise PydanticCustomError("CFG-240", "privacy.adaptive is set, but privacy.clipping is not adaptive.")
        if self.clipping == "adaptive" and not self.adaptive.min_clipbound <= self.max_grad_norm <= self.adaptive.max_clipbound:
            raise PydanticCustomError(
                "CFG-241",
                "privacy.max_grad_norm, where the clipping norm starts, is outside privacy.adaptive's min_clipbound and max_clipbound.",
            )
        return self
