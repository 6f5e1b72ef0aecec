"""What a coordinator needs of a model: its first tensors, what they are hashed as, and how the final ones are saved."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedethos.job import Job
from fedethos.messages import Arrays

if TYPE_CHECKING:
    import torch


class GlobalModel(Protocol):
    """As ``client/model.py`` has it."""

    base_sha256: str
    device: torch.device

    def read(self) -> Arrays: ...

    def read_frozen(self) -> Arrays: ...

    def load(self, arrays: Arrays) -> None: ...

    def base_weights(self) -> str | None: ...


class Prepared(Protocol):
    """As ``client/task.py`` has it. ``save`` writes what ``model`` holds into a folder."""

    @property
    def model(self) -> GlobalModel: ...

    @property
    def save(self) -> Callable[[Path], None]: ...


class Prepare(Protocol):
    """``client/registry.py``'s ``prepare_task``."""

    def __call__(self, job: Job, *, base: Path, scratch: Path, resources: ExitStack) -> Prepared: ...
