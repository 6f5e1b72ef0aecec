"""What a job's fairness strategy needs from the rest of the job. The strategies are in ``strategies/``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from fedethos.job import Job
    from fedethos.job_fairness import Fairness

SITE_STRATEGIES = ("fairfed", "afl", "qfedavg")
"""Strategies that move the weights of sites in the aggregation; the others move the weights of cells in training."""

_CONSTRAINTS = {  # of the strategies that have one
    "controller": ("demographic_parity", "equal_opportunity", "equalized_odds", "worst_group"),
    "fedfb": ("demographic_parity", "equal_opportunity", "equalized_odds"),
    "fairfed": ("equal_opportunity", "demographic_parity"),
}


def check_strategy(job: Job) -> None:
    """Refuse a strategy that could not steer, or keys of a strategy that is not there.

    Raises
    ------
    PydanticCustomError
        CFG-341 beside constant weights, CFG-342 for keys that do nothing, CFG-343 when no round is left to steer,
        CFG-344 for a constraint that the strategy does not know, CFG-345 for q-FedAvg beside another step of the server.
    """
    fairness = job.fairness
    if idle := _set_for_nothing(fairness):
        strategy = "Without fairness.strategy" if fairness.strategy == "none" else f"With fairness.strategy {fairness.strategy}"
        raise PydanticCustomError("CFG-342", f"{strategy} these keys do nothing; leave them out: {', '.join(idle)}.")
    if fairness.strategy != "none" and fairness.cell_weights is not None:
        raise PydanticCustomError("CFG-341", "fairness.strategy finds the weights of cells; fairness.cell_weights fixes them. Keep one.")
    if fairness.constraint not in (known := _CONSTRAINTS.get(fairness.strategy, (fairness.constraint,))):
        raise PydanticCustomError("CFG-344", f"{fairness.strategy} knows {', '.join(known)} (fairness.constraint).")
    if fairness.steers and fairness.every >= job.federation.rounds:
        raise PydanticCustomError("CFG-343", "fairness.every leaves no round to steer: it has to be less than federation.rounds.")
    if fairness.strategy == "qfedavg" and (job.federation.server_optimizer != "none" or job.aggregation not in ("fedavg", "ffa")):
        raise PydanticCustomError(
            "CFG-345",
            "qfedavg makes the step of the server itself: federation.server_optimizer none, federation.aggregation fedavg or ffa.",
        )


def steers_cells(fairness: Fairness) -> bool:
    """Whether the strategy moves the weights of cells."""
    return fairness.strategy != "none" and fairness.strategy not in SITE_STRATEGIES


def _set_for_nothing(fairness: Fairness) -> list[str]:
    strategy, fields = fairness.strategy, type(fairness).model_fields
    acts = {
        "constraint": strategy in _CONSTRAINTS,
        "every": fairness.steers,
        "learning_rate": fairness.steers and strategy not in ("term", "qfedavg"),
        "q": strategy == "qfedavg",
        "tilt": strategy == "term",
    }
    return [f"fairness.{key}" for key, does in acts.items() if not does and getattr(fairness, key) != fields[key].default]
