"""Intersections of sensitive attributes (``fairness.intersections``): groups such as Female*Black beside Female and Black.

An intersection is measured as an attribute of its own. Its name joins those of its parts with ``*``, which no attribute may have in its
name. Its groups are all combinations of declared categories, the last part running fastest; a person with any part missing is ``unknown``.
``client/examples.py`` sorts the records into them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from pydantic_core import PydanticCustomError

JOIN = "*"
MOST_GROUPS = 64
"""Combinations that one intersection may have. More of them share out the people, and every cell of a table brings its own noise."""


def intersection_name(parts: Sequence[str]) -> str:
    """Name of the intersection of these attributes, or of these categories."""
    return JOIN.join(parts)


def parts_of(attribute: str) -> list[str]:
    """The attributes that an intersection joins; an attribute of its own is its only part."""
    return attribute.split(JOIN)


def crossed_categories(sensitive: Mapping[str, Sequence[str]], intersections: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Per intersection its groups, without ``unknown``. The order of a group is that of ``numpy.ravel_multi_index``."""
    return {
        intersection_name(parts): [intersection_name(combination) for combination in product(*(sensitive[part] for part in parts))]
        for parts in intersections
    }


def check_intersections(sensitive: Mapping[str, Sequence[str]], intersections: Sequence[Sequence[str]]) -> None:
    """Refuse intersections that a job cannot mean.

    Raises
    ------
    PydanticCustomError
        CFG-360 for a part that is no sensitive attribute, CFG-361 for fewer than two different parts or the same intersection twice,
        CFG-362 for more than ``MOST_GROUPS`` combinations, CFG-363 when two combinations would have one name.
    """
    if any(part not in sensitive for parts in intersections for part in parts):
        raise PydanticCustomError("CFG-360", "fairness.intersections names an attribute that is not one of data.sensitive.")
    alone = any(len(parts) < 2 or len(set(parts)) < len(parts) for parts in intersections)
    if alone or len({frozenset(parts) for parts in intersections}) < len(intersections):
        raise PydanticCustomError(
            "CFG-361", "Each of fairness.intersections takes two or more different attributes, and none of them is named twice."
        )
    for parts in intersections:
        combinations = math.prod(len(sensitive[part]) for part in parts)
        if combinations > MOST_GROUPS:
            raise PydanticCustomError(
                "CFG-362",
                f"{intersection_name(parts)} under fairness.intersections has {combinations} groups, more than {MOST_GROUPS}. "
                "Most would be too small to be measured. Leave an attribute out, or merge categories under data.map.",
            )
    for name, groups in crossed_categories(sensitive, intersections).items():
        if len(set(groups)) < len(groups):
            raise PydanticCustomError(
                "CFG-363",
                f"Two groups of {name} under fairness.intersections have the same name. Rename the categories that hold '{JOIN}'.",
            )
