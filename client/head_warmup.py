"""Head warm-up: in the job's first rounds the classification head trains alone (``training.head_warmup_rounds``).

Linear probing, then fine-tuning (Kumar et al. 2022; under privacy Ke et al. 2024, "On the Convergence of Differentially-Private
Fine-tuning: To Linearly Probe or to Fully Fine-tune?"). A unit's bound C then belongs to the head alone, and noise enters only the
head's few coordinates instead of all of the adapter's. The adapter stays as it was sent. A round costs the same epsilon as any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fedethos.client.model import NodeModel
from fedethos.job import Training


@contextmanager
def trained_in(round: int, model: NodeModel, training: Training) -> Iterator[NodeModel]:
    """What trains in ``round`` (1 is the first): ``model`` itself, or in a warm-up round a view of it that has only its head to train.

    Inside, the adapter's tensors take no gradient, so that a clipping engine has exactly the head to cover.
    """
    if round > training.head_warmup_rounds:
        yield model
        return
    head = model.head_names()
    others = [parameter for name, parameter in model.parameters.items() if name not in head]
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield model.training_only(head)
    finally:
        for parameter in others:
            parameter.requires_grad_(True)
