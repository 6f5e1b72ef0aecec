"""What a job says about its simulation: virtual sites, and how people are dealt to them. See ``simulations/``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.caps import VirtualSite
from fedethos.section import FiniteFloat, PositiveFloat, Section


class Partition(Section):
    kind: Literal["iid", "dirichlet", "by-column", "by-group"] = Field(
        "dirichlet", description="How the people are dealt to virtual sites."
    )
    by: str | None = Field(
        None, description="dirichlet, by-group: a sensitive attribute or 'label'. by-column: a column that names the site."
    )
    alpha: PositiveFloat = Field(0.5, description="dirichlet: smaller is more unequal.")
    redraw: bool = Field(
        False,
        description="Deal the people again, with the next sub-seed, until every site has people in each split and each label in training.",
    )

    @model_validator(mode="after")
    def _by_where_needed(self) -> Partition:
        if self.kind != "iid" and self.by is None:
            raise PydanticCustomError("CFG-223", f"simulation.partition.kind {self.kind} needs simulation.partition.by.")
        if self.redraw and self.kind == "by-column":
            raise PydanticCustomError("CFG-340", "simulation.partition.redraw: a partition by column is not drawn at random.")
        return self


class Canaries(Section):
    """Made-up secrets among the training records, whose exposure tells what the model memorises (causal-lm)."""

    count: int = Field(ge=10, le=1000, description="How many different secrets; fewer than ten have no verdict.")
    repetitions: int = Field(1, ge=1, le=1000, description="Records of each.")
    limit: FiniteFloat = Field(3.0, description="The most bits of exposure that the scenario canaries.yaml allows.")


class Simulation(Section):
    sites: int = Field(5, ge=1, le=10_000, description="Number of virtual sites.")
    partition: Partition = Field(default_factory=lambda: Partition(kind="iid"))
    seed: int = Field(7, ge=0, lt=2**63, description="Everything random in a simulation follows from it.")
    engine: Literal["inprocess"] = Field("inprocess", description="All sites in this process, one shared base model.")
    site: VirtualSite = Field(default_factory=VirtualSite)
    canaries: Canaries | None = Field(None, description="Plant made-up secrets among the training records; null: none.")
