"""Who is asked in a round, and a grid that shows a strategy nobody else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedethos.flower import Run
from fedethos.privacy.randomness import keyed_generator
from fedethos.server.site import Site


def choose_cohort(sites: Mapping[int, Site], *, fraction: float, min_sites: int, seed: int, round: int) -> dict[int, Site]:
    """A share of the sites, at least ``min_sites``, drawn by (seed, round); in the order of their names."""
    size = min(len(sites), max(min_sites, math.ceil(fraction * len(sites))))
    by_name = sorted(sites.values(), key=lambda site: site.name)
    chosen = keyed_generator(seed, "cohort", round).choice(len(by_name), size=size, replace=False)
    return {by_name[index].node_id: by_name[index] for index in sorted(chosen)}


class CohortGrid(Grid):
    """The grid of one round: a Flower strategy samples from it, but cannot send through it."""

    def __init__(self, grid: Grid, node_ids: Iterable[int]) -> None:
        self._grid = grid
        self._node_ids = list(node_ids)

    def get_node_ids(self) -> Iterable[int]:
        return self._node_ids

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise RuntimeError("a strategy sends nothing itself: the round loop does")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise RuntimeError("a strategy receives nothing itself: the round loop does")

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise RuntimeError("a strategy sends nothing itself: the round loop does")
