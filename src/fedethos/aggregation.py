"""What each aggregation rule trains and sends. Coordinator and node both derive it from (rule, round), so that neither trusts a message.

============ ====================== ================================================ ======================
rule         trains (beside head)   how the coordinator combines                     mean of the updates BA
============ ====================== ================================================ ======================
fedavg       A and B                mean of A, mean of B                             not met
ffa          B                      mean of B                                        exact
rolora       B in odd, A in even    mean of what was trained                         exact
fedsvd       B                      mean of B, then A and B anew by SVD              exact
fedex        A and B                means, and the rest into a residual              exact
flora        A and B                all sites' factors stacked into a residual       exact
flexlora     A and B, own ranks     SVD of the mean of BA, cut at lora.r             not met: cut
fedsb        the r x r core         mean of the core between fixed B and A           exact
============ ====================== ================================================ ======================

Names are PEFT's. A residual is a second, frozen low-rank pair under names of its own, scaled as the adapter is: a layer's update is
(lora_alpha / r) · (B A + residual_B residual_A). Next: ``strategies/`` (one rule a file), ``client/node.py``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Aggregation = Literal["fedavg", "ffa", "rolora", "fedsvd", "fedex", "flora", "flexlora", "fedsb"]

WITH_RESIDUAL: frozenset[Aggregation] = frozenset({"fedex", "flora"})
REWRITTEN: frozenset[Aggregation] = WITH_RESIDUAL | {"fedsvd", "flexlora"}  # A and B are new numbers after each round
EXPORTED_AS_ONE: frozenset[Aggregation] = WITH_RESIDUAL | {"fedsb"}  # one pair a layer stands for adapter and residual, or for the core

HEAD_CENTER = "head_center"
"""Name of the centre of the head's input (``models/head_center.py``): in each request of a job that has one, and never trained."""

_LAYER = re.compile(r"^(?P<layer>.*)\.(?P<kind>lora|residual)_(?P<factor>[AB])\.weight$")


def trained_in(rule: Aggregation, round: int, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that train in ``round``, sorted. The head always trains, a residual never; the head's centre is all of round 0."""
    if round == 0:
        return [name for name in names if name == HEAD_CENTER]
    resting = tuple(f".lora_{factor}.weight" for factor in _resting_factors(rule, round))
    return sorted(name for name in names if not is_residual(name) and name != HEAD_CENTER and not name.endswith(resting))


def phases(rule: Aggregation, names: Iterable[str]) -> list[list[str]]:
    """The different sets of ``names`` that train together: one, or two where rounds alternate."""
    names = list(names)
    odd, even = trained_in(rule, 1, names), trained_in(rule, 2, names)
    return [odd] if odd == even else [odd, even]


def ever_trained(rule: Aggregation, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that train in any round, sorted."""
    return sorted({name for phase in phases(rule, names) for name in phase})


def is_residual(name: str) -> bool:
    """Whether a tensor belongs to the residual of fedex or flora."""
    match = _LAYER.match(name)
    return match is not None and match["kind"] == "residual"


def layers_of(names: Iterable[str]) -> list[str]:
    """Names of the adapted layers, sorted."""
    return sorted({match["layer"] for name in names if (match := _LAYER.match(name)) and match["kind"] == "lora"})


def lora_names(layer: str) -> tuple[str, str]:
    """Names of a layer's (B, A)."""
    return f"{layer}.lora_B.weight", f"{layer}.lora_A.weight"


def residual_names(layer: str) -> tuple[str, str]:
    """Names of a layer's (residual_B, residual_A)."""
    return f"{layer}.residual_B.weight", f"{layer}.residual_A.weight"


def core_name(layer: str) -> str:
    """Name of the r x r core of fedsb, which stands between a layer's B and A. PEFT leaves its adapter's name in it."""
    return f"{layer}.lora_A.default.core.weight"


def _resting_factors(rule: Aggregation, round: int) -> str:
    if rule in ("ffa", "fedsvd"):
        return "A"
    if rule == "rolora":
        return "A" if round % 2 == 1 else "B"
    return "AB" if rule == "fedsb" else ""
