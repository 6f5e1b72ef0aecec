"""Pure functions over adapter arrays: weighted mean, weight cap, aggregation error. No Flower, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedethos.messages import Arrays

_PAIR = re.compile(r"^(?P<layer>.*)\.lora_A(?P<rest>\..*)$")


def weighted_mean(updates: Sequence[Arrays], weights: Sequence[float]) -> Arrays:
    """Coordinate-wise weighted mean (McMahan et al. 2017, FedAvg), summed in float64, returned as float32.

    Parameters
    ----------
    updates : sequence of dict name -> float32 array
        All with the same names and shapes.
    weights : sequence of float
        Positive; normalised here.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    return {
        name: np.sum([share * update[name].astype(np.float64) for share, update in zip(shares, updates, strict=True)], axis=0).astype(
            np.float32
        )
        for name in updates[0]
    }


def capped_shares(weights: Mapping[str, float], cap: float) -> dict[str, float]:
    """Shares of the total in which nobody exceeds ``cap``; the excess goes to the others in proportion.

    With too few sites for the cap (n * cap < 1) all shares are equal.
    """
    if len(weights) * cap <= 1.0:
        return dict.fromkeys(weights, 1.0 / len(weights))
    capped: set[str] = set()
    while True:
        free = 1.0 - cap * len(capped)
        total = sum(weight for name, weight in weights.items() if name not in capped)
        shares = {name: cap if name in capped else free * weight / total for name, weight in weights.items()}
        over = {name for name, share in shares.items() if share > cap + 1e-12}
        if not over:
            return shares
        capped |= over


def aggregation_error(updates: Sequence[Arrays], weights: Sequence[float], aggregated: Arrays, frozen: Arrays) -> float:
    """How far the aggregated adapter is from the mean of the sites' products BA, relative in Frobenius norm.

    Averaging A and B apart is not averaging BA (Sun et al. 2024, FFA-LoRA); with A frozen the error is 0. Returns 0 when
    there is no LoRA pair or the mean product is zero.
    """
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    difference = norm = 0.0
    for name_a, name_b in lora_pairs({*aggregated, *frozen}):
        if name_a in frozen and name_b not in frozen:
            continue  # linear in B alone
        mean = np.sum([share * _product(update, name_a, name_b) for share, update in zip(shares, updates, strict=True)], axis=0)
        difference += float(np.square(_product(aggregated, name_a, name_b) - mean).sum())
        norm += float(np.square(mean).sum())
    return float(np.sqrt(difference / norm)) if norm > 0 else 0.0


def lora_pairs(names: set[str]) -> list[tuple[str, str]]:
    """(lora_A, lora_B) names of each adapted layer, sorted."""
    pairs = []
    for name in sorted(names):
        if match := _PAIR.match(name):
            pairs.append((name, f"{match['layer']}.lora_B{match['rest']}"))
    return pairs


def _product(arrays: Arrays, name_a: str, name_b: str) -> npt.NDArray[np.float64]:
    return arrays[name_b].astype(np.float64) @ arrays[name_a].astype(np.float64)
