"""Private mechanisms as data: what was done to whom with how much noise, and nothing about what it costs.

An event describes one use of a mechanism on one population of a site; an ``Allotment`` is the right to use it so many times.
Both are frozen, compare by value and go through JSON unchanged. Costs: ``privacy/composition.py`` within one plan,
``privacy/renyi.py`` across plans. The ledger (``privacy/ledger.py``) keeps allotments and draws them down.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Discriminator, JsonValue, TypeAdapter, ValidationError

from fedethos.errors import FedethosError

Adjacency = Literal["add-remove", "replace-one"]
Population = Literal["train", "validation", "test"]

CENTER = "head-center"
"""Purpose of the allotment that pays for the centre of the head's input, once."""

TRAIN = "train"
"""Purpose of the allotment that pays for a round of training."""

_CONFIG = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


@dataclass(frozen=True, kw_only=True)
class TrainingSteps:
    """``steps`` steps of DP-SGD (Abadi et al. 2016) on the training people.

    Each takes every unit with probability ``sampling_rate``, bounds each unit's part to L2 norm C and adds Gaussian noise of
    standard deviation ``noise_multiplier * C``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    noise_multiplier: float
    sampling_rate: float
    steps: int
    mechanism: Literal["training-steps"] = "training-steps"

    def __post_init__(self) -> None:
        _check(_is_noise(self.noise_multiplier) and 0.0 < self.sampling_rate <= 1.0 and self.steps >= 1)

    @property
    def population(self) -> Population:
        return "train"

    def with_noise(self, factor: float) -> TrainingSteps:
        """The same with ``factor`` times the noise."""
        return dataclasses.replace(self, noise_multiplier=self.noise_multiplier * factor)


@dataclass(frozen=True, kw_only=True)
class CountRelease:
    """``tables`` tables of counts over the same people, discrete Gaussian noise of parameter ``sigma`` in every cell.

    Each table is a partition: a row falls into exactly one of its cells. A unit has at most ``rows`` rows. ``sigma`` is in rows.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    sigma: float
    rows: int
    tables: int
    population: Population
    mechanism: Literal["count-release"] = "count-release"

    def __post_init__(self) -> None:
        _check(_is_noise(self.sigma) and self.rows >= 1 and self.tables >= 1)

    def moved_cells(self, adjacency: Adjacency) -> int:
        """How many cells one unit changes at most by ``rows`` each: one a table, or two when it is replaced."""
        return self.tables if adjacency == "add-remove" else 2 * self.tables

    def l2_sensitivity(self, adjacency: Adjacency) -> float:
        """m·√k under add-remove, m·√(2k) under replace-one."""
        return self.rows * math.sqrt(self.moved_cells(adjacency))

    def with_noise(self, factor: float) -> CountRelease:
        """The same with ``factor`` times the noise."""
        return dataclasses.replace(self, sigma=self.sigma * factor)


@dataclass(frozen=True, kw_only=True)
class GaussianSum:
    """A sum over all units, each unit's part bounded to L2 norm L, Gaussian noise of standard deviation ``noise_multiplier * L``."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    noise_multiplier: float
    population: Population
    mechanism: Literal["gaussian-sum"] = "gaussian-sum"

    def __post_init__(self) -> None:
        _check(_is_noise(self.noise_multiplier))

    def with_noise(self, factor: float) -> GaussianSum:
        """The same with ``factor`` times the noise."""
        return dataclasses.replace(self, noise_multiplier=self.noise_multiplier * factor)


Event = Annotated[TrainingSteps | CountRelease | GaussianSum, Discriminator("mechanism")]


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """The right to release ``event`` ``times`` times for ``purpose``, such as "train" (once a round) or "counts/test"."""

    __pydantic_config__: ClassVar[ConfigDict] = _CONFIG

    purpose: str
    event: Event
    times: int

    def __post_init__(self) -> None:
        _check(bool(self.purpose) and self.times >= 1)


_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def purpose_of(parts: Iterable[str], population: Population, *, personal: bool = False) -> str:
    """Name of the allotment that pays for a release of these parts of count tables, such as ``groups+scores/test``."""
    return f"{'personal-' * personal}{'+'.join(sorted(parts))}/{population}"


def event_to_json(event: Event) -> dict[str, JsonValue]:
    """A plain object; ``mechanism`` names the kind."""
    return dataclasses.asdict(event)


def event_from_json(value: dict[str, JsonValue]) -> Event:
    """The event that ``event_to_json`` wrote. PRIV-304 for anything else: an unknown mechanism is never guessed at."""
    try:
        return _EVENT.validate_json(json.dumps(value))
    except ValidationError:
        raise _outside() from None


def _is_noise(value: float) -> bool:
    return 0.0 < value < math.inf


def _check(holds: bool) -> None:
    if not holds:
        raise _outside()


def _outside() -> FedethosError:
    return FedethosError(
        "PRIV-304",
        "The description of a private mechanism is incomplete or outside its range.",
        why="Its cost cannot be computed, so nothing is released.",
        fix="Noise is positive and finite, a sampling rate in (0, 1], a number of steps, rows, tables or times at least 1.",
    )
