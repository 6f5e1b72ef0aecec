"""``data`` in a job: the contract that every site's records must meet. Read by ``fedethos.data``."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.section import Fraction, Section

UNKNOWN = "unknown"  # the group of a record whose sensitive attribute is missing


class Label(Section):
    column: str = Field(description="Column that holds the label.")
    values: list[str] = Field(min_length=2, description="All labels, in class order.")
    favorable: str = Field(description="The outcome that is good for the person; rates are rates of this label.")

    @model_validator(mode="after")
    def _favorable_is_a_label(self) -> Label:
        if len(set(self.values)) != len(self.values):
            raise PydanticCustomError("CFG-213", "data.label.values names a label twice.")
        if self.favorable not in self.values:
            raise PydanticCustomError(
                "CFG-214",
                "data.label.favorable is not one of data.label.values. Selection rates need to know which outcome is good for the person.",
            )
        if len(self.values) > 2:
            raise PydanticCustomError("CFG-215", "data.label.values has more than two labels; this version measures two-class tasks.")
        return self

    @property
    def favorable_index(self) -> int:
        """Class index of the favorable label."""
        return self.values.index(self.favorable)


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
    map: dict[str, dict[str, str]] = Field(
        default_factory=dict,
        description="Per column: raw value to declared category, or a threshold such as '>=1' to a category.",
    )
    text: str | dict[Literal["column"], str] = Field(
        description="A template over columns, '{age} years old, {occupation}', or {column: NAME} for a text column as it is."
    )
    label: Label
    sensitive: dict[str, list[str]] = Field(
        default_factory=dict, description="Sensitive attributes with all their categories; a missing value is the group 'unknown'."
    )
    person_id: str | None = Field(None, description="Column that names the person; all rows of a person stay together.")
    split: Split = Field(default_factory=Split)
    split_salt: str | None = Field(None, description="Salt of the split's hash; null in a simulation: made from the seed.")
    limit: float | None = Field(None, gt=0.0, le=1.0, description="Use only so large a share of the people.")

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
