"""``data`` in a job: the contract that every site's records must meet. Read by ``fedethos.data``."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.section import FiniteFloat, Fraction, PositiveFloat, Section

UNKNOWN = "unknown"  # the group of a record whose sensitive attribute is missing


Text = str | dict[Literal["column"], str]
"""A template over columns, or a column as it is."""


class Label(Section):
    column: str | None = Field(description="Column that holds the label; null only where no record has one (causal-lm, preference).")
    values: list[str] = Field(min_length=1, description="All labels, in class order.")
    favorable: str = Field(description="The outcome that is good for the person; rates are rates of this label.")

    @model_validator(mode="after")
    def _favorable_is_a_label(self) -> Label:
        if (len(self.values) == 1) != (self.column is None) or (self.column is None and self != self.own_answer()):
            raise PydanticCustomError(
                "CFG-415", "data.label needs at least two values; causal-lm and preference have no labels and leave data.label out."
            )
        if len(set(self.values)) != len(self.values):
            raise PydanticCustomError("CFG-213", "data.label.values names a label twice.")
        if self.favorable not in self.values:
            raise PydanticCustomError(
                "CFG-214",
                "data.label.favorable is not one of data.label.values. Selection rates need to know which outcome is good for the person.",
            )
        return self

    @classmethod
    def own_answer(cls) -> Label:
        """Of the tasks whose records bring their right answer: the one label ``right``, predicted where the model agrees."""
        return cls.model_construct(column=None, values=["right"], favorable="right")

    @property
    def multiclass(self) -> bool:
        """Whether there are more than two labels: the most likely one is predicted, and no single threshold decides."""
        return len(self.values) > 2

    @property
    def favorable_index(self) -> int:
        """Class index of the favorable label."""
        return self.values.index(self.favorable)


class Numeric(Section):
    """A numeric feature with PUBLIC scaling constants: ``low`` and ``high``, or ``mean`` and ``scale``."""

    low: FiniteFloat | None = Field(None, description="Becomes 0; what is below counts as low.")
    high: FiniteFloat | None = Field(None, description="Becomes 1; what is above counts as high.")
    log: bool = Field(False, description="Scale log(1 + value) between low and high instead of the value.")
    mean: FiniteFloat | None = Field(None, description="Becomes 0; instead of low and high.")
    scale: PositiveFloat | None = Field(None, description="Distance from the mean that becomes 1, such as a standard deviation.")

    @model_validator(mode="after")
    def _one_way_to_scale(self) -> Numeric:
        if (
            (self.low is None) == (self.mean is None)
            or (self.low is None) != (self.high is None)
            or (self.mean is None) != (self.scale is None)
        ):
            raise PydanticCustomError("CFG-273", "A numeric feature needs low and high, or mean and scale.")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise PydanticCustomError("CFG-273", "The low of a numeric feature is not below its high.")
        if self.log and (self.low is None or self.low < 0.0):
            raise PydanticCustomError("CFG-273", "log: true needs low and high, with a low of at least 0.")
        return self


class Split(Section):
    """Shares of the people, not of the rows; drawn once by a salted hash, the same for ever."""

    train: Fraction = Field(0.7, description="Share of the people to train on.")
    validation: Fraction = Field(0.1, description="Share that sets the decision threshold and the early stop.")
    test: Fraction = Field(0.2, description="Share that the final metrics come from.")

    @model_validator(mode="after")
    def _sums_to_one(self) -> Split:
        if abs(self.train + self.validation + self.test - 1.0) > 1e-9:
            raise PydanticCustomError("CFG-216", "data.split does not sum to 1.")
        if min(self.train, self.validation, self.test) <= 0.0:
            raise PydanticCustomError(
                "CFG-217", "data.split gives nothing to one of train, validation and test. Each needs its own people."
            )
        return self


class Data(Section):
    """The data contract; in a simulation also where the records are."""

    path: str = Field(description="builtin:adult, a .csv/.data/.parquet/.jsonl file, or a Hugging Face dataset folder.")
    columns: list[str] | None = Field(None, description="Column names for a file without a header line.")
    na_values: list[str] = Field(default_factory=list, description="Marks that mean 'missing', such as '?'.")
    map: dict[str, dict[str, str | None]] = Field(
        default_factory=dict,
        description="Per column: raw value, or a threshold such as '>=1', to declared category; to null where it means 'missing'.",
    )
    text: Text | None = Field(
        None, description="A template over columns, '{age} years old, {occupation}', or {column: NAME} for a text column as it is."
    )
    messages: str | None = Field(
        None,
        description="Instead of text, for language models: column with a chat, a JSON list of {role, content}. For causal-lm without "
        "response its last message, the assistant's, is the response.",
    )
    response: Text | None = Field(None, description="causal-lm: the answer to learn; the loss is on it alone.")
    choices: dict[str, str] | None = Field(
        None,
        description="multiple-choice: the text of each of label.values, a template or a constant; or {column: NAME} for a column that "
        "lists them in that order.",
    )
    choice_style: Literal["text", "letter"] = Field(
        "text", description="multiple-choice: score the text of each option, or list the options in the prompt and score their letters."
    )
    chosen: Text | None = Field(None, description="preference: the better answer.")
    rejected: Text | None = Field(None, description="preference: the worse answer.")
    features: dict[str, Numeric | list[str]] | None = Field(
        None,
        min_length=1,
        description="Instead of text, for tabular-classification: per column {low: 17, high: 90}, {mean: 38.6, scale: 13.7}, "
        "or the list of its categories. Public constants, never read off a site's table.",
    )
    label: Label = Field(default_factory=Label.own_answer, description="What is predicted; left out for causal-lm and preference.")
    sensitive: dict[str, list[str]] = Field(
        default_factory=dict, description="Sensitive attributes with all their categories; a missing value is the group 'unknown'."
    )
    person_id: str | None = Field(None, description="Column that names the person; all rows of a person stay together.")
    split: Split = Field(default_factory=Split)
    split_salt: str | None = Field(None, description="Salt of the split's hash; null in a simulation: made from the seed.")
    limit: float | None = Field(None, gt=0.0, le=1.0, description="Use only so large a share of the people.")

    @property
    def of_questions(self) -> Data:
        """The contract of records that are to be answered: without label, answers, groups and people."""
        label = self.label.model_copy(update={"column": None})
        empty: dict[str, object] = {"response": None, "chosen": None, "rejected": None, "sensitive": {}, "person_id": None}
        return self.model_copy(update={"label": label, **empty})

    @model_validator(mode="after")
    def _categories_are_declared_once(self) -> Data:
        for attribute, categories in self.sensitive.items():
            if len(categories) < 2 or len(set(categories)) != len(categories):
                raise PydanticCustomError("CFG-218", f"data.sensitive.{attribute} needs at least two different categories.")
            if UNKNOWN in categories:
                raise PydanticCustomError("CFG-219", f"data.sensitive.{attribute} declares 'unknown', which stands for missing values.")
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", attribute):
                raise PydanticCustomError("CFG-220", "A name under data.sensitive has characters other than letters, digits, _ . -")
        if isinstance(self.text, dict) and set(self.text) != {"column"}:
            raise PydanticCustomError("CFG-221", "data.text is a template or {column: NAME}.")
        return self

    @model_validator(mode="after")
    def _features_are_well_declared(self) -> Data:
        for column, declared in (self.features or {}).items():
            if isinstance(declared, list) and (not declared or len(set(declared)) != len(declared)):
                raise PydanticCustomError("CFG-274", "A list under data.features is empty or names a category twice.")
            if column in {self.label.column, self.person_id} - {None}:
                raise PydanticCustomError(
                    "CFG-275", "data.features holds the label or the person's identifier: the model would read the answer."
                )
        return self
