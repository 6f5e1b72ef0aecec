"""What a job says about personal adapters: Ditto (Li et al. 2021). How a site trains one is in ``client/personal.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field
from pydantic_core import PydanticCustomError

from fedethos.aggregation import REWRITTEN
from fedethos.section import PositiveFloat, Section

if TYPE_CHECKING:
    from fedethos.job import Job


class Personal(Section):
    proximal_mu: float = Field(
        1.0,
        ge=0.0,
        allow_inf_nan=False,
        description="Ditto's lambda: pull of the personal adapter towards the round's global one; 0: local training alone.",
    )
    local_steps: int | None = Field(None, ge=1, le=100_000, description="Steps of the personal adapter in a round; null: local_steps.")
    learning_rate: PositiveFloat | None = Field(None, description="Of the personal adapter; null: that of the global one.")
    release_counts: bool = Field(
        False,
        description="Sites send test counts of the personal adapters too. In a private job these then train with noise, paid by the same "
        "epsilon. false: they train without noise, and nothing about them leaves the site.",
    )


def check_personal(job: Job) -> None:
    """Refuse personal adapters where they would mean nothing.

    Raises
    ------
    PydanticCustomError
        CFG-295 when the aggregation rule writes A and B anew: entry by entry, nothing is near the global adapter then; CFG-296 for
        released counts beside thresholds per group, which are fitted to the global adapter.
    """
    personal = job.training.personal
    if personal is None:
        return
    if job.aggregation in REWRITTEN:
        raise PydanticCustomError(
            "CFG-295",
            f"federation.aggregation {job.aggregation} writes A and B anew in each round, so a personal adapter cannot be kept near "
            "them. With training.personal use fedavg, ffa, rolora or fedsb.",
        )
    if personal.release_counts and job.fairness.group_constraint is not None:
        raise PydanticCustomError(
            "CFG-296",
            f"fairness.thresholds {job.fairness.thresholds} fits rules to the global adapter. With "
            "training.personal.release_counts use pooled or fixed.",
        )
