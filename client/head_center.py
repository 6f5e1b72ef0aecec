"""What a site answers in round 0 of a job with ``training.center_head``: its private mean of what the head reads.

Next on the path: ``privacy/center.py`` (the mechanism), ``fedethos/models/head_center.py`` (what becomes of it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from fedethos.client.examples import Examples, micro_batches
from fedethos.client.model import NodeModel
from fedethos.errors import FedethosError
from fedethos.messages import Arrays
from fedethos.privacy.center import release_center
from fedethos.privacy.ledger_plan import Receipt, Release
from fedethos.privacy.randomness import RandomSource

if TYPE_CHECKING:
    from fedethos.models.head_center import HeadCenter


def center_of(
    model: NodeModel, examples: Examples, *, declared_size: int, tokens: int, receipt: Receipt, source: RandomSource
) -> Release[Arrays]:
    """The paid mean around the centre that ``model`` has now. ``tokens`` bounds a forward pass. Errors as for ``release_center``."""
    if model.center is None:
        raise FedethosError("SEC-632", "A centre was asked for, and this model has none.", why="Nothing was computed.")
    center = model.center
    return release_center(
        head_inputs(model, center, examples, tokens=tokens),
        examples.unit,
        reference=center.value.detach().cpu().numpy().astype(np.float64),
        bound=center.bound,
        declared_size=declared_size,
        receipt=receipt,
        source=source,
    )


def head_inputs(model: NodeModel, center: HeadCenter, examples: Examples, *, tokens: int) -> npt.NDArray[np.float64]:
    """What the head reads of each record before it is centred, float64[n, h], in the order of the records."""
    inputs = np.zeros((len(examples), len(center.value)))
    with torch.no_grad(), center.watched() as seen:
        for rows in micro_batches(np.arange(len(examples)), examples.unit, examples.inputs.lengths, tokens):
            model.logits(examples.inputs.batch(rows))
            inputs[rows] = seen.pop().cpu().numpy()
    return inputs
