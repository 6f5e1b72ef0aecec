"""What a job says about counterfactual records. How they are made is in ``data/identity.py`` and ``data/counterfactual.py``."""

from __future__ import annotations

import re

from pydantic_core import PydanticCustomError

from fedethos.job_data import Data

TermLists = str | dict[str, list[list[str]]] | None


def check_augment(data: Data, identity_terms: TermLists) -> None:
    """Refuse counterfactual augmentation that could never make a copy.

    Raises
    ------
    PydanticCustomError
        CFG-330 without sensitive attributes; CFG-331 when there are no identity terms and the model reads no sensitive column.
    """
    if not data.sensitive:
        raise PydanticCustomError("CFG-330", "fairness.augment is counterfactual, but data.sensitive declares no attribute to swap.")
    if identity_terms is None and not any(_is_read(data, attribute) for attribute in data.sensitive):
        raise PydanticCustomError(
            "CFG-331",
            "fairness.augment is counterfactual, but the model reads no sensitive column and fairness.identity_terms is null: "
            "no record would get a copy.",
        )


def _is_read(data: Data, attribute: str) -> bool:
    if data.features is not None:
        return isinstance(data.features.get(attribute), list)
    if isinstance(data.text, dict):
        return data.text["column"] == attribute
    return re.search(rf"\{{\s*{re.escape(attribute)}\s*\}}", data.text or "") is not None
