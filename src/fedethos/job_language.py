"""What the language-model tasks say in a job (``causal-lm``, ``multiple-choice``, ``preference``), and what they may not say.

All three read a prompt (``data.text`` or ``data.messages``) and score continuations of it: the response, each option, or the chosen and
the rejected answer. ``data/prompts.py`` makes them of records, ``client/language_model.py`` scores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic_core import PydanticCustomError

from fedethos.aggregation import WITH_RESIDUAL

if TYPE_CHECKING:
    from fedethos.job import Job

LanguageTask = Literal["causal-lm", "multiple-choice", "preference"]
LANGUAGE_TASKS: tuple[LanguageTask, ...] = ("causal-lm", "multiple-choice", "preference")

ANSWER_KEYS = ("response", "choices", "chosen", "rejected")
_ANSWERS: Mapping[str, tuple[tuple[str, ...], ...]] = {  # alternatives, by task
    "causal-lm": (("response",), ()),
    "multiple-choice": (("choices",),),
    "preference": (("chosen", "rejected"),),
}


def check_language(job: Job) -> None:
    """Refuse keys that contradict the task, or would do nothing. Tasks without language models have none of them.

    Raises
    ------
    PydanticCustomError
        CFG-410 to CFG-414, CFG-416 and CFG-420, see docs/errors.md.
    """
    _check_answers(job)
    if job.simulation.canaries is not None and job.task != "causal-lm":
        raise PydanticCustomError("CFG-420", "simulation.canaries are secrets that the model learns to write: for causal-lm alone.")
    if (job.data.label.column is None) != (job.task in ("causal-lm", "preference")):
        raise PydanticCustomError(
            "CFG-411",
            "data.label belongs to classification and multiple-choice; in causal-lm and preference every record's own answer is right.",
        )
    if job.task not in LANGUAGE_TASKS:
        if idle := _set_without_language_model(job):
            raise PydanticCustomError("CFG-413", f"These keys do nothing for {job.task}; leave them out: {', '.join(idle)}.")
        return
    if job.fairness.thresholds != "fixed":
        raise PydanticCustomError(
            "CFG-412", f"{job.task} takes the likeliest answer, and no threshold moves it. Set fairness.thresholds: fixed."
        )
    if job.aggregation in WITH_RESIDUAL and (job.model.dtype != "float32" or job.model.load_in_4bit):
        raise PydanticCustomError(
            "CFG-416", f"federation.aggregation {job.aggregation} folds updates into the base's weights, which must be float32 for it."
        )
    if idle := _set_for_nothing(job):
        raise PydanticCustomError("CFG-413", f"These keys do nothing for {job.task}; leave them out: {', '.join(idle)}.")


def _check_answers(job: Job) -> None:
    data = job.data
    given = tuple(key for key in ANSWER_KEYS if getattr(data, key) is not None)
    allowed = _ANSWERS.get(job.task, ((),))
    if given not in allowed or (job.task == "causal-lm" and not given and data.messages is None):
        raise PydanticCustomError(
            "CFG-410",
            "The answers under data do not fit the task: causal-lm needs data.response (or data.messages that end with it), "
            "multiple-choice data.choices, preference data.chosen and data.rejected; other tasks none of them.",
        )
    listed = data.choices is not None and set(data.choices) == {"column"} and "column" not in data.label.values
    if data.choices is not None and not listed and set(data.choices) != set(data.label.values):
        raise PydanticCustomError(
            "CFG-414",
            "data.choices gives a text for each of data.label.values, or {column: NAME} for a column that lists them in order.",
        )


def _set_without_language_model(job: Job) -> list[str]:
    model, training = type(job.model).model_fields, type(job.training).model_fields
    changed = {
        **{f"model.{key}": getattr(job.model, key) != model[key].default for key in ("dtype", "load_in_4bit", "chat_template")},
        "training.dpo_beta": job.training.dpo_beta != training["dpo_beta"].default,
        "training.anchor": job.training.anchor is not None,
        "data.messages": job.data.messages is not None,
        "data.choice_style": job.data.choice_style != "text",
    }
    return [key for key, is_set in changed.items() if is_set]


def _set_for_nothing(job: Job) -> list[str]:
    training, task = job.training, job.task
    changed = {
        "training.head_warmup_rounds": training.head_warmup_rounds not in ("auto", 0),
        "training.center_head": job.center_head,
        "training.head_learning_rate": training.head_learning_rate is not None,
        "training.dpo_beta": task != "preference" and training.dpo_beta != type(training).model_fields["dpo_beta"].default,
        "data.choice_style": task != "multiple-choice" and job.data.choice_style != "text",
        "fairness.augment": job.fairness.augment != "none",
        "fairness.loss": task != "multiple-choice" and job.fairness.loss != "none",
        "fairness.strategy": task != "multiple-choice" and job.fairness.strategy != "none",
    }
    return [key for key, is_set in changed.items() if is_set]
