"""What a person sees while a run is going: a live table on a terminal, one plain line per round everywhere else.

The round loop talks to an ``Observer``; ``Silent`` is the one that says nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedethos.records import Round
from fedethos.storage import JsonValue, canonical_line
from fedethos.wording import duration, epsilon, number, size

State = Literal["training", "sent", "late", "refused"]

SHOWN_SITES = 12  # more than these are counted instead of listed
_LOOK: dict[str, tuple[str, str]] = {  # state: sign, colour; the word is always beside it
    "training": ("~", "cyan"),
    "sent": ("+", "green"),
    "late": ("!", "yellow"),
    "refused": ("x", "red"),
}
_BLOCKS = "▁▂▃▄▅▆▇█"


class Observer(Protocol):
    """What the round loop reports. Every call returns at once and must not fail the run."""

    def stage(self, text: str) -> None:
        """A long step outside the rounds begins, such as "Preparing site 2 of 5"."""

    def round_started(self, round: int, rounds: int, sites: Sequence[str]) -> None: ...

    def site(self, name: str, state: State) -> None: ...

    def round_finished(self, record: Mapping[str, JsonValue]) -> None:
        """``record`` is the line of ``rounds.jsonl``."""


class Silent:
    """An observer that shows nothing."""

    def stage(self, text: str) -> None:
        pass

    def round_started(self, round: int, rounds: int, sites: Sequence[str]) -> None:
        pass

    def site(self, name: str, state: State) -> None:
        pass

    def round_finished(self, record: Mapping[str, JsonValue]) -> None:
        pass


@dataclass
class _View:
    """All that is on the screen."""

    stage: str = "Starting"
    round: int = 0
    rounds: int = 0
    sites: dict[str, str] = field(default_factory=dict)
    finished: list[Round] = field(default_factory=list)

    @property
    def seconds_left(self) -> float | None:
        """Mean length of the training rounds so far, times the rounds to come."""
        trained = [record.seconds for record in self.finished if record.round > 0]
        if not trained:
            return None
        return sum(trained) / len(trained) * max(self.rounds - self.finished[-1].round, 0)


class Progress:
    """Live view on ``console`` (standard error by default). Use it as a context manager around the run."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._view = _View()
        self._live = Live(console=self._console, auto_refresh=False, transient=False) if self._console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def stage(self, text: str) -> None:
        self._view.stage = text
        self._show(text)

    def round_started(self, round: int, rounds: int, sites: Sequence[str]) -> None:
        self._view.stage, self._view.round, self._view.rounds = "", round, rounds
        self._view.sites = dict.fromkeys(sites, "training")
        self._show(None)

    def site(self, name: str, state: State) -> None:
        self._view.sites[name] = state
        self._show(None)

    def round_finished(self, record: Mapping[str, JsonValue]) -> None:
        finished = Round.model_validate_json(canonical_line(record))
        self._view.finished.append(finished)
        self._view.sites |= finished.sites
        self._show(_line(self._view))

    def _show(self, line: str | None) -> None:
        if self._live is not None:
            self._live.update(_draw(self._view, ascii_only=self._console.options.ascii_only), refresh=True)
        elif line is not None:
            self._console.print(Text(line), soft_wrap=True)


def _line(view: _View) -> str:
    """``round 3 of 6: 5 sent; worst group 0.812, AUC 0.871, epsilon 5.21; 1.2 MB up, 1.2 MB down; about 40 s left``."""
    record = view.finished[-1]
    head = "before training" if record.round == 0 else f"round {record.round} of {view.rounds}"
    states = [_states(record.sites)] if record.sites else []
    states += [f"{refusal.site} refused with {refusal.code}" for refusal in record.refusals]
    parts = [*states, ", ".join(_facts(record)), f"{size(record.bytes_up)} up, {size(record.bytes_down)} down"]
    if view.seconds_left is not None:
        parts.append(f"about {duration(view.seconds_left)} left" if view.seconds_left else "last round")
    return f"{head}: {'; '.join(parts)}"


def _facts(record: Round) -> list[str]:
    name, value = _quality(record)
    facts = [f"worst group {number(record.metrics.worst_group_accuracy)}", f"{name} {number(value)}"]
    spent = _largest(record)
    return facts + ([f"epsilon {epsilon(spent)}"] if spent is not None else [])


def _quality(record: Round) -> tuple[str, float | None]:
    """The AUC; accuracy where the task has none."""
    metrics = record.metrics
    return ("AUC", metrics.roc_auc) if metrics.roc_auc is not None or metrics.accuracy is None else ("accuracy", metrics.accuracy)


def _states(sites: Mapping[str, str]) -> str:
    counted = Counter(sites.values())
    return ", ".join(f"{counted[state]} {state}" for state in _LOOK if counted[state])


def _largest(record: Round) -> float | None:
    return max((value for value in (record.epsilon or {}).values() if value is not None), default=None)


def _draw(view: _View, *, ascii_only: bool) -> Group:
    parts: list[Table | Text] = []
    if view.rounds:
        parts.append(_headline(view))
    if view.stage:
        parts.append(Text(view.stage, style="dim"))
    if view.finished:
        parts.append(_numbers(view, ascii_only=ascii_only))
    if len(view.sites) > SHOWN_SITES:
        parts.append(Text(f"{len(view.sites)} sites: {_states(view.sites)}"))
    elif view.sites:
        parts.append(_sites(view))
    return Group(*parts)


def _headline(view: _View) -> Table:
    row = Table.grid(padding=(0, 2))
    done = max((record.round for record in view.finished), default=0)
    left = view.seconds_left
    row.add_row(
        Text("Before training" if view.round == 0 else f"Round {view.round} of {view.rounds}", style="bold"),
        ProgressBar(total=view.rounds, completed=done, width=24),
        Text("done" if done == view.rounds else f"about {duration(left)} left" if left is not None else ""),
    )
    return row


def _numbers(view: _View, *, ascii_only: bool) -> Table:
    last = view.finished[-1]
    up, down = (sum(getattr(record, name) for record in view.finished) for name in ("bytes_up", "bytes_down"))
    table = Table.grid(padding=(0, 2))
    for label, values in (
        ("Worst group", [record.metrics.worst_group_accuracy for record in view.finished]),
        (_quality(last)[0], [_quality(record)[1] for record in view.finished]),
    ):
        table.add_row(label, number(values[-1]), "" if ascii_only else _spark(values))
    spent = _largest(last)
    table.add_row("Epsilon", epsilon(spent), "largest of the sites, so far" if spent is not None else "no privacy protection")
    table.add_row("Sent", size(up), f"to the sites {size(down)}")
    return table


def _sites(view: _View) -> Table:
    table = Table.grid(padding=(0, 2))
    spent = view.finished[-1].epsilon if view.finished else None
    for name, state in view.sites.items():
        sign, colour = _LOOK[state]
        cost = (spent or {}).get(name)
        table.add_row(
            Text(sign, style=colour), Text(name), Text(state, style=colour), f"epsilon {epsilon(cost)}" if cost is not None else ""
        )
    return table


def _spark(values: Sequence[float | None]) -> str:
    """The last 24 values between their own smallest and largest; a gap where nothing was released."""
    shown = values[-24:]
    known = [value for value in shown if value is not None]
    if len(known) < 2:
        return ""
    low, span = min(known), max(known) - min(known)
    return "".join(" " if value is None else _BLOCKS[min(7, int(8 * (value - low) / span)) if span else 0] for value in shown)
