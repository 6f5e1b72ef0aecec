"""What a job says about its ethics loss and its sampling, and which of it fights. The losses are in ``fairness/losses.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import PydanticCustomError

from fedethos.job_data import UNKNOWN

if TYPE_CHECKING:
    from fedethos.job import Job

WEIGHING_LOSSES = ("reweighing", "group_dro")
"""Losses that act by weights of cells, after clipping."""

_ROUNDING = 0.01  # of shares that were written down with few digits


def check_loss(job: Job) -> None:
    """Refuse a loss or a sampling that lacks what it needs, fights with another key, or has keys that do nothing.

    Raises
    ------
    PydanticCustomError
        CFG-350 to CFG-355, see docs/errors.md.
    """
    fairness = job.fairness
    if fairness.loss in WEIGHING_LOSSES and (fairness.strategy != "none" or fairness.cell_weights is not None):
        raise PydanticCustomError(
            "CFG-350",
            f"fairness.loss {fairness.loss} finds the weights of cells, and so does fairness.strategy or fairness.cell_weights. Keep one.",
        )
    if fairness.loss == "counterfactual_consistency" and fairness.augment != "counterfactual":
        raise PydanticCustomError(
            "CFG-351", "fairness.loss counterfactual_consistency compares copies: set fairness.augment: counterfactual."
        )
    if idle := _set_for_nothing(job):
        raise PydanticCustomError("CFG-352", f"These keys do nothing with the job's loss and sampling; leave them out: {', '.join(idle)}.")
    if job.training.sampling == "group_balanced":
        if fairness.training_shares is None:
            raise PydanticCustomError(
                "CFG-354", "training.sampling group_balanced needs the public shares of the groups: fairness.training_shares."
            )
        if fairness.loss == "reweighing":
            raise PydanticCustomError(
                "CFG-355", "fairness.loss reweighing and training.sampling group_balanced both balance groups: twice is too much. Keep one."
            )
    _check_shares(job)


def _set_for_nothing(job: Job) -> list[str]:
    fairness, fields = job.fairness, type(job.fairness).model_fields
    changed = {key: getattr(fairness, key) != fields[key].default for key in ("focal_gamma", "consistency_weight", "training_shares")}
    idle = {
        "focal_gamma": fairness.loss != "focal",
        "consistency_weight": fairness.loss != "counterfactual_consistency",
        "training_shares": fairness.loss != "reweighing" and job.training.sampling == "uniform",
    }
    return [f"fairness.{key}" for key, is_set in changed.items() if is_set and idle[key]]


def _check_shares(job: Job) -> None:
    shares, attribute = job.fairness.training_shares, job.fairness_attribute
    if shares is None or attribute is None:
        return
    groups, labels = job.attributes[attribute], set(job.data.label.values)
    named = set(shares) == {*groups} or set(shares) == {*groups, UNKNOWN}
    if not named or any(set(by_label) != labels for by_label in shares.values()):
        raise PydanticCustomError(
            "CFG-353", "fairness.training_shares names each group of fairness.attribute (unknown only if it has people) with each label."
        )
    if abs(sum(share for by_label in shares.values() for share in by_label.values()) - 1.0) > _ROUNDING:
        raise PydanticCustomError("CFG-353", "fairness.training_shares do not add up to 1.")
