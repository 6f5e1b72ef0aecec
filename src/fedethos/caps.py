"""What a site lets its population spend: ``caps`` of site.yaml, and of the virtual sites of a simulation."""

from __future__ import annotations

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.section import PositiveFloat, Section


class Caps(Section):
    """What the site's population may spend, whatever a coordinator asks for. Once in the ledger they can only be tightened."""

    lifetime_epsilon: PositiveFloat = Field(description="Over everything that ever leaves about this population, all jobs together.")
    per_job_epsilon: PositiveFloat = Field(description="Over all runs of one job.")
    delta: float = Field(1.0e-5, gt=0.0, lt=0.01, description="The delta that both caps are stated at; fixed with the account.")
    rounds: int = Field(100, ge=1, le=100_000, description="A job that plans more releases for one purpose is refused.")

    @model_validator(mode="after")
    def _a_job_is_part_of_a_lifetime(self) -> Caps:
        if self.per_job_epsilon > self.lifetime_epsilon:
            raise PydanticCustomError("CFG-225", "caps.per_job_epsilon is larger than caps.lifetime_epsilon.")
        return self

    def tightens(self, earlier: Caps) -> bool:
        """Whether these caps allow nothing that ``earlier`` does not."""
        return (
            self.delta == earlier.delta
            and self.lifetime_epsilon <= earlier.lifetime_epsilon
            and self.per_job_epsilon <= earlier.per_job_epsilon
            and self.rounds <= earlier.rounds
        )


class VirtualSite(Section):
    """What every virtual site decides for itself, as a real one does in its site.yaml."""

    caps: Caps | None = Field(None, description="What its population may spend; null: what this job asks for.")
    ledger: str | None = Field(
        None, description="A ledger that several runs share, from the job's folder, so that trials add up; null: the run keeps its own."
    )

    @model_validator(mode="after")
    def _a_shared_ledger_has_a_cap(self) -> VirtualSite:
        if self.ledger is not None and self.caps is None:
            raise PydanticCustomError(
                "CFG-260", "simulation.site.ledger needs simulation.site.caps: the caps of one job leave nothing for a second."
            )
        return self
