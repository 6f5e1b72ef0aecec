"""What a run must remember between rounds, and how it goes into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from fedethos.errors import FedethosError
from fedethos.messages import Arrays, TrainReply, arrays_sha256
from fedethos.runfolder import RunFolder
from fedethos.server.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from fedethos.server.site import Site
from fedethos.server.standing import Standing
from fedethos.server.steering import Steering


class SiteSpending(BaseModel):
    """A site's last privacy statement. ``rounds``: the rounds it trained in; ``epsilon`` is None without privacy."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: tuple[int, ...] = ()
    steps: int = 0
    epsilon: float | None = None


class Memory(BaseModel):
    """The JSON part of a checkpoint.

    ``best`` and ``waited`` belong to the early stop, ``steering`` to the fairness strategy, ``standings`` to sites with a refused reply;
    bytes and seconds are of the whole run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frozen_sha256: str
    spending: dict[str, SiteSpending]
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    aggregation_error: float = 0.0
    best: float | None = None
    waited: int = 0
    steering: Steering | None = None
    standings: dict[str, Standing] = {}


@dataclass(frozen=True)
class RunState:
    """After ``round`` rounds: the global tensors that a request carries, the strategy's arrays, and the rest."""

    round: int
    arrays: Arrays
    memory: Memory
    strategy: Mapping[str, npt.NDArray[np.floating]] = field(default_factory=dict)

    @classmethod
    def start(cls, arrays: Arrays, frozen: Arrays, sites: Iterable[Site]) -> RunState:
        return cls(0, arrays, Memory(frozen_sha256=arrays_sha256(frozen), spending={site.name: SiteSpending() for site in sites}))

    def remembering(self, **changes: object) -> RunState:
        """The same state with some of its memory replaced."""
        return RunState(self.round, self.arrays, self.memory.model_copy(update=changes), self.strategy)


def save_state(folder: RunFolder, state: RunState) -> None:
    """One whole checkpoint."""
    write_checkpoint(folder.checkpoints, Checkpoint(state.round, state.arrays, state.strategy, state.memory.model_dump(mode="json")))


def load_state(folder: RunFolder, frozen: Arrays, *, say: Callable[[str], None]) -> RunState | None:
    """The newest whole checkpoint, or None. Lines of rounds.jsonl after it are cut off.

    Raises
    ------
    FedethosError
        RUN-930 when the frozen tensors of this process are not those that the run began with.
    """
    saved = latest_checkpoint(folder.checkpoints, say=say)
    folder.truncate_rounds(-1 if saved is None else saved.round)
    if saved is None:
        return None
    try:
        memory = Memory.model_validate(saved.state)
    except ValidationError:
        memory = None
    if memory is None or memory.frozen_sha256 != arrays_sha256(frozen):
        raise FedethosError(
            "RUN-930",
            "The adapter drawn now is not the one that this run began with.",
            where=str(folder.path),
            why="Continuing would mix two different adapters.",
            fix="Resume with the package versions named in manifest.json.",
        )
    return RunState(saved.round, dict(saved.arrays), memory, dict(saved.strategy))


def spending_after(before: SiteSpending, reply: TrainReply, round: int) -> SiteSpending:
    """The site's spending once it has trained in ``round``."""
    steps = reply.steps if reply.epsilon is not None else before.steps + reply.steps
    return SiteSpending(rounds=tuple(sorted({*before.rounds, round})), steps=steps, epsilon=reply.epsilon)
