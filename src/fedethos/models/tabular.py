"""Models of numbers and categories: ``builtin:linear`` (softmax regression) and ``builtin:mlp``. All their parameters train.

The linear model starts at zero, as the convex problem allows. The mlp has tanh between its layers: bounded activations lose less to
clipping than ReLU (Papernot et al. 2021, "Tempered Sigmoid Activations for Deep Learning with Differential Privacy"), and no
record is ever without a gradient. Its layers are drawn from the job's seed alone (torch's Kaiming-uniform).

A saved model is ``model.safetensors`` and ``config.json``, which says how records become inputs: ``load_tabular`` needs no job.
"""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from fedethos.data.features import feature_names
from fedethos.errors import FedethosError
from fedethos.job import LINEAR, Job
from fedethos.job_data import Numeric

MODEL_FILE, CONFIG_FILE = "model.safetensors", "config.json"


class Architecture(BaseModel):
    """``config.json``: everything about a tabular model but its numbers.

    ``features`` is ``data.features`` of the job, ``labels`` its label values in class order; ``hidden`` is empty for a linear model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    schema_: Literal["fedethos/tabular/v1"] = "fedethos/tabular/v1"
    features: dict[str, Numeric | list[str]]
    hidden: list[int]
    activation: Literal["tanh"] = "tanh"
    labels: list[str]

    @classmethod
    def of(cls, job: Job) -> Architecture:
        """The architecture that a job of the task tabular-classification asks for."""
        hidden = [] if job.model.path == LINEAR else list(job.model.hidden or ())
        return cls(features=dict(job.data.features or {}), hidden=hidden, labels=job.data.label.values)

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON form, 64 hex digits: what sites compare before training."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()


class TabularClassifier(nn.Module):
    """``forward(features=Tensor[b, d])`` gives logits Tensor[b, labels]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        widths = [len(feature_names(architecture.features)), *architecture.hidden, len(architecture.labels)]
        self.layers = nn.ModuleList(nn.Linear(into, out) for into, out in pairwise(widths))

    def forward(self, features: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            features = torch.tanh(layer(features))
        logits: Tensor = last(features)
        return logits


def make_tabular(architecture: Architecture, *, seed: int) -> TabularClassifier:
    """An untrained model on the CPU: zeros without hidden layers, else drawn from ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = TabularClassifier(architecture)
    if not architecture.hidden:
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
    return model.eval()


def save_tabular(folder: Path, model: TabularClassifier) -> None:
    """Write ``model.safetensors`` and ``config.json``: the same bytes for the same model."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in sorted(model.named_parameters())}
    settings = json.dumps(model.architecture.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL_FILE).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
    (folder / CONFIG_FILE).write_text(settings + "\n", "utf-8")


def load_tabular(folder: Path) -> TabularClassifier:
    """Read what ``save_tabular`` wrote. ``encode_features(table, model.architecture.features)`` makes its inputs.

    Raises
    ------
    FedethosError
        MODEL-470 when the folder holds no tabular model, MODEL-471 when its tensors do not fit its architecture.
    """
    try:
        architecture = Architecture.model_validate_json((folder / CONFIG_FILE).read_bytes())
        tensors = safetensors.torch.load((folder / MODEL_FILE).read_bytes())
    except (OSError, ValidationError, SafetensorError):
        raise FedethosError(
            "MODEL-470",
            "The folder holds no tabular model that this version can read.",
            where=str(folder),
            fix=f"Name the adapter folder of a tabular run, with {CONFIG_FILE} and {MODEL_FILE}.",
        ) from None
    model = TabularClassifier(architecture)
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected or not _all_finite(tensors):
        raise FedethosError(
            "MODEL-471",
            "The tensors of the tabular model do not fit its config.json, or are not finite.",
            where=str(folder),
            fix="Copy both files from the same run again.",
        )
    model.load_state_dict(tensors)
    return model.eval()


def _all_finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(np.isfinite(tensor.numpy()).all()) for tensor in tensors.values())
