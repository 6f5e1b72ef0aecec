"""``reference.yaml``: the population that a site's records should look like. Read by ``fedethos audit-data --reference``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.documents import load_document
from fedethos.errors import FedethosError
from fedethos.section import Fraction, Section


class Reference(Section):
    """The whole document."""

    schema_: Literal["fedethos/reference/v1"] = Field("fedethos/reference/v1", alias="schema")
    source: str = Field(min_length=1, description="Where the shares come from, such as 'census 2021, adults of the catchment area'.")
    shares: dict[str, dict[str, Fraction]] = Field(min_length=1, description="Per sensitive attribute: every declared group's share.")

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Reference:
        for attribute, shares in self.shares.items():
            if abs(sum(shares.values()) - 1.0) > 0.005:
                raise PydanticCustomError("CFG-320", f"The shares of {attribute} do not sum to 1.")
        return self


def load_reference(path: Path, sensitive: Mapping[str, Sequence[str]]) -> Reference:
    """Read ``path`` and check it against ``data.sensitive``. Refusals as in ``load_document``; CFG-320, CFG-321."""
    reference = load_document(Reference, path)
    for attribute, shares in reference.shares.items():
        if set(shares) != set(sensitive.get(attribute, ())):
            declared = ", ".join(sensitive.get(attribute, ())) or "none: it is not one of data.sensitive"
            raise FedethosError(
                "CFG-321",
                f"The groups of {attribute} are not those that the job declares.",
                where=str(path),
                why="A share of a population is only comparable if both divide it in the same way.",
                fix=f"Give each declared group its share, and no other. Declared: {declared}.",
            )
    return reference
