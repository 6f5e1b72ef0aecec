"""What a job's fairness strategy needs from the rest of the job. The strategies are in ``strategies/``."""

from __future__ import annotations

from pydantic_core import PydanticCustomError

from fedethos.job_fairness import Fairness

_KEYS_OF_STEERING = ("every", "learning_rate")


def check_strategy(fairness: Fairness, *, rounds: int) -> None:
    """Refuse a strategy that could not steer, or keys of a strategy that is not there.

    Raises
    ------
    PydanticCustomError
        CFG-341 beside constant weights, CFG-342 for keys that do nothing, CFG-343 when no round is left to steer,
        CFG-344 for a constraint that the strategy does not know.
    """
    without = [*(("constraint",) if fairness.strategy == "none" else ()), *(() if fairness.steers else _KEYS_OF_STEERING)]
    if idle := [f"fairness.{key}" for key in without if getattr(fairness, key) != type(fairness).model_fields[key].default]:
        raise PydanticCustomError("CFG-342", f"Without fairness.strategy these keys do nothing; leave them out: {', '.join(idle)}.")
    if fairness.strategy != "none" and fairness.cell_weights is not None:
        raise PydanticCustomError("CFG-341", "fairness.strategy finds the weights of cells; fairness.cell_weights fixes them. Keep one.")
    if fairness.strategy == "fairfed" and fairness.constraint not in ("equal_opportunity", "demographic_parity"):
        raise PydanticCustomError("CFG-344", "fairfed compares gaps of equal_opportunity or demographic_parity (fairness.constraint).")
    if fairness.steers and fairness.every >= rounds:
        raise PydanticCustomError("CFG-343", "fairness.every leaves no round to steer: it has to be less than federation.rounds.")
