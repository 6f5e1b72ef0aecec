"""FedAvg over adapters (McMahan et al. 2017): the weighted mean of every trainable tensor.

Runs in any ServerApp on Flower's usual records; sampling of nodes and messages are Flower's own. What differs from
Flower's FedAvg: the sum is in float64 and the result float32, whatever the order of the replies.
"""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import FedAvg

from fedethos.messages import Arrays, encode_arrays
from fedethos.strategies.averaging import weighted_mean


class AdapterFedAvg(FedAvg):
    """Weighted by each reply's ``num-examples``; our round loop puts the approved weight there."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        updates, weights = updates_of(replies, self.arrayrecord_key, self.weighted_by_key)
        if not updates:
            return None, None
        return encode_arrays(self.combine(updates, weights)), MetricRecord({self.weighted_by_key: float(sum(weights))})

    def combine(self, updates: list[Arrays], weights: list[float]) -> Arrays:
        """The rule itself: arrays and weights in, arrays out."""
        return weighted_mean(updates, weights)


def updates_of(replies: Iterable[Message], arrays_key: str, weight_key: str) -> tuple[list[Arrays], list[float]]:
    """Arrays and weights of the replies that carry content, ordered by node id."""
    valid = sorted((reply for reply in replies if reply.has_content()), key=lambda reply: reply.metadata.src_node_id)
    updates = [{name: array.numpy() for name, array in reply.content.array_records[arrays_key].items()} for reply in valid]
    weights = [float(next(iter(reply.content.metric_records.values()))[weight_key]) for reply in valid]  # type: ignore[arg-type]
    return updates, weights
