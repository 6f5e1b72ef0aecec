"""Head warm-up: in the job's first rounds the classification head trains alone (``training.head_warmup_rounds``).

Linear probing, then fine-tuning (Kumar et al. 2022; under privacy Ke et al. 2024, "On the Convergence of Differentially-Private
Fine-tuning: To Linearly Probe or to Fully Fine-tune?"). A unit's bound C then belongs to the head alone, and noise enters only the
head's few coordinates instead of all of the adapter's. The adapter stays as it was sent. A round costs the same epsilon as any other.
"""

from __future__ import annotations

from collections.abc import Iterable


def head_first(names: Iterable[str], round: int, *, warmup_rounds: int) -> list[str]:
    """What trains in ``round`` (1 is the first) of ``names``, which the aggregation rule trains: in a warm-up round the head alone."""
    return [name for name in names if round > warmup_rounds or "lora_" not in name]
