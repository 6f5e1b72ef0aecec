"""FedAvg over adapters (McMahan et al. 2017): the weighted mean of every tensor that trained.

Runs in any ServerApp on Flower's usual records; sampling of nodes and messages are Flower's own. What differs from
Flower's FedAvg: the sum is in float64 and the result float32, whatever the order of the replies; and a reply may hold less than the
request, so that a rule can keep or replace what did not train (``advance``). The other rules are its subclasses, one paper a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedethos.aggregation import Aggregation, trained_in
from fedethos.errors import FedethosError
from fedethos.messages import Arrays, encode_arrays
from fedethos.strategies.averaging import Updates, weighted_mean


class AdapterFedAvg(FedAvg):
    """Weighted by each reply's ``num-examples``; our round loop puts the approved weight there."""

    rule: ClassVar[Aggregation] = "fedavg"
    current_arrays: Arrays | None = None  # what this round's requests carry

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self.current_arrays = {name: array.numpy() for name, array in arrays.items()}
        messages: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """All global tensors after the round.

        Raises
        ------
        FedethosError
            AGG-740 when a reply holds other tensors than the rule trains in this round.
        """
        updates, weights = updates_of(replies, self.arrayrecord_key, self.weighted_by_key)
        if not updates:
            return None, None
        arrays = self.aggregate(server_round, updates, weights)
        return encode_arrays(arrays), MetricRecord({self.weighted_by_key: float(sum(weights))})

    def aggregate(self, server_round: int, updates: Updates, weights: Sequence[float]) -> Arrays:
        """The same without messages: our round loop hands over updates that lie on disk. At least one; AGG-740 as above."""
        combined = self.combine(updates, weights)
        current = self.current_arrays or combined
        if set(combined) != set(trained_in(self.rule, server_round, current)):
            raise FedethosError(
                "AGG-740",
                f"The replies hold other tensors than {self.rule} trains in this round.",
                where="federation.aggregation",
                fix="Run the job with one version of fedethos everywhere.",
            )
        return self.advance(server_round, {**current, **combined}, updates, weights)

    def combine(self, updates: Updates, weights: Sequence[float]) -> Arrays:
        """What the sites trained, as one set of tensors."""
        return weighted_mean(updates, weights)

    def advance(self, server_round: int, averaged: Arrays, updates: Updates, weights: Sequence[float]) -> Arrays:
        """The next global tensors from ``averaged``: what trained combined, everything else as it was sent."""
        return averaged


def updates_of(replies: Iterable[Message], arrays_key: str, weight_key: str) -> tuple[list[Arrays], list[float]]:
    """Arrays and weights of the replies that carry content, ordered by node id."""
    valid = sorted((reply for reply in replies if reply.has_content()), key=lambda reply: reply.metadata.src_node_id)
    updates = [{name: array.numpy() for name, array in reply.content.array_records[arrays_key].items()} for reply in valid]
    weights = [float(next(iter(reply.content.metric_records.values()))[weight_key]) for reply in valid]  # type: ignore[arg-type]
    return updates, weights
