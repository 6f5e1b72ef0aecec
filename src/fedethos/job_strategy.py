"""What a job's fairness strategy needs from the rest of the job. The strategies are in ``strategies/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from fedethos.job import Fairness

_KEYS = ("constraint", "every", "learning_rate")  # of a strategy alone


def check_strategy(fairness: Fairness, *, sensitive: Mapping[str, Sequence[str]], rounds: int) -> None:
    """Refuse a strategy that has nothing to steer by, or keys of a strategy that is not there.

    Raises
    ------
    PydanticCustomError
        CFG-341 without a sensitive attribute, CFG-342 when it is not clear which one, CFG-343 beside constant weights, CFG-344 for keys
        that do nothing, CFG-345 when no round is left to steer.
    """
    if fairness.strategy == "none":
        if idle := [f"fairness.{key}" for key in _KEYS if getattr(fairness, key) != type(fairness).model_fields[key].default]:
            raise PydanticCustomError("CFG-344", f"Without fairness.strategy these keys do nothing; leave them out: {', '.join(idle)}.")
        return
    if not sensitive:
        raise PydanticCustomError("CFG-341", "fairness.strategy needs a sensitive attribute under data.sensitive.")
    if fairness.attribute is None and len(sensitive) > 1:  # their order is not part of the job's hash
        raise PydanticCustomError("CFG-342", "There are several sensitive attributes: name that of the strategy in fairness.attribute.")
    if fairness.cell_weights is not None:
        raise PydanticCustomError("CFG-343", "fairness.strategy finds the weights of cells; fairness.cell_weights fixes them. Keep one.")
    if fairness.every >= rounds:
        raise PydanticCustomError("CFG-345", "fairness.every leaves no round to steer: it has to be less than federation.rounds.")
