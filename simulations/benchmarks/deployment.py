"""``make bench ONLY=deployment``: how fast messages travel, what an idle node costs, what the gateway and the aggregation hold."""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Iterator, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from fedethos.messages import Arrays
from fedethos.simulations.benchmarks.fleet_load import Fleet, fleet_of, stock_fleet_of
from fedethos.simulations.benchmarks.idle_node import idle_node
from fedethos.simulations.benchmarks.processes import PeakMemory
from fedethos.simulations.benchmarks.row import Row, alone, compared
from fedethos.strategies.averaging import aggregation_error
from fedethos.strategies.fedavg import AdapterFedAvg

_PART = "deployment"
_ROUNDS = 5
_ADAPTER_BYTES = 100_000_000
_TENSORS = 12
_MANY = 200
_PARAMETERS, _REPLIES = 1_000_000, 1_000


def rows() -> list[Row]:
    """In the order of the limits in docs/benchmarks.md, "Deployment"."""
    return [*_exchange(), *_idle(), _many_nodes(), *_large_adapter(), _aggregation()]


def _exchange() -> list[Row]:
    """A round of no work: one train and one evaluate message to four nodes and back. Median of five; the first one is left out."""
    with fleet_of(4) as fleet:
        content = _arrays(10_000)
        seconds = [fleet.ask(content, timeout=60.0) + fleet.ask(content, timeout=60.0) for _ in range(_ROUNDS + 1)][1:]
    return [alone(_PART, "train_and_evaluate_exchange/4_nodes_tls_keys_s", statistics.median(seconds), limit=1.5)]


def _idle() -> list[Row]:
    """A real node (``fedethos client start``) before its first job, over half a minute."""
    requests, megabytes = idle_node()
    return [
        alone(_PART, "idle_node/requests_per_s", requests, limit=1.0),
        alone(_PART, "idle_node/resident_MB", megabytes, limit=150.0),
    ]


def _many_nodes() -> Row:
    """Two hundred connected nodes answer one message of 40 kB each; their side runs on the same machine."""
    with fleet_of(_MANY) as fleet:
        seconds = fleet.ask(_arrays(10_000), timeout=120.0)
    return alone(_PART, "gateway/200_nodes_all_answer_s", seconds, limit=30.0)


def _large_adapter() -> list[Row]:
    """100 MB to one node and back, beside Flower's own SuperLink with TLS and keys; both keep their state in SQLite."""
    ours, stock, memory = [], [], []
    for _ in range(2):
        with fleet_of(1) as fleet:
            seconds, grown = _there_and_back(fleet)
            ours.append(seconds)
            memory.append(grown)
        with stock_fleet_of(1) as fleet:
            stock.append(_there_and_back(fleet)[0])
    return [
        compared(_PART, "100_MB_adapter/seconds_vs_stock_superlink", min(ours), min(stock), limit=1.5),
        alone(_PART, "100_MB_adapter/peak_memory_in_adapters", max(memory) * 1e6 / _ADAPTER_BYTES, limit=4.0),
    ]


def _there_and_back(fleet: Fleet) -> tuple[float, float]:
    """Seconds, and by how many megabytes the SuperLink grew at most."""
    fleet.ask(_arrays(100), timeout=60.0)
    with PeakMemory(fleet.pid) as memory:
        seconds = fleet.ask(_arrays(_ADAPTER_BYTES // 4), timeout=600.0)
    return seconds, memory.peak - memory.before


class _Replies(Mapping[str, Arrays]):
    """Updates that are made when they are read, as those on disk are."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __getitem__(self, name: str) -> Arrays:
        generator = np.random.default_rng(int(name))
        return {"head.weight": generator.standard_normal(_PARAMETERS, dtype=np.float32)}

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, range(self._count)))

    def __len__(self) -> int:
        return self._count


def _aggregation() -> Row:
    """Peak memory of aggregating 1,000 replies of a million parameters beside that of 100."""
    peaks = []
    for count in (_REPLIES, _REPLIES // 10):
        replies, weights = _Replies(count), [1.0] * count
        tracemalloc.start()
        arrays = AdapterFedAvg().aggregate(1, replies.values(), weights)
        aggregation_error(arrays, replies.values(), weights, arrays, {})
        peaks.append(tracemalloc.get_traced_memory()[1] / 1e6)
        tracemalloc.stop()
    return compared(_PART, "aggregation_memory/1000_vs_100_replies_of_1M_MB", peaks[0], peaks[1], limit=1.1)


def _arrays(values: int) -> RecordDict:
    """As many tensors as an adapter of the demo has."""
    parts = np.array_split(np.random.default_rng(7).standard_normal(values, dtype=np.float32), _TENSORS)
    return RecordDict({"arrays": ArrayRecord({f"layer-{number}": Array(part) for number, part in enumerate(parts)})})
