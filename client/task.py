"""What a task brings to a node: the model that trains, and how a site's records become its inputs.

Trainer, evaluator, node and audit are the same for all tasks. ``client/registry.py`` names the tasks, one file each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedethos.client.examples import Inputs
from fedethos.client.model import NodeModel
from fedethos.data.records import Records
from fedethos.privacy.self_check import SyntheticLoss

if TYPE_CHECKING:
    from fedethos.client.anchor import Anchor
    from fedethos.client.writer import TextWriter


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job's task on this machine.

    Attributes
    ----------
    model : NodeModel
        Before training.
    inputs : callable
        From the records of one split of one site to the model's inputs.
    synthetic_loss : SyntheticLoss
        Made-up records for the self-check of the clipping engine.
    longest_loss : SyntheticLoss
        Made-up records as long as the job allows, for an estimate of time and memory.
    save : callable
        Write what was trained, as it stands in ``model``, into a folder.
    writer : TextWriter, optional
        Of a language model: what continues prompts.
    anchor : Anchor, optional
        Of a language model: what its training is held by (``training.anchor``).
    """

    model: NodeModel
    inputs: Callable[[Records], Inputs]
    synthetic_loss: SyntheticLoss
    longest_loss: SyntheticLoss
    save: Callable[[Path], None]
    writer: TextWriter | None = None
    anchor: Anchor | None = None
