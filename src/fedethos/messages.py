"""The message contract between coordinator and node: what may be asked, what may be answered, and on what basis.

Three message types, all on Flower's Message API. An unknown type, record, field, dtype or contract version is refused by
whoever receives it. Every field of a reply carries its basis (``Basis``): why it may leave the site.

============= ================================ ==========================================
type          request                          reply
============= ================================ ==========================================
query.setup   arrays: frozen adapter tensors   statement: fedethos version, base-model hash
train         arrays: global tensors           arrays: those that train in this round; statement: the cost so far
evaluate      arrays: global tensors           counts: int64 tables per attribute
============= ================================ ==========================================

A train request of round 0 asks for the head's centre, in a job that has one (``models/head_center.py``); the reply holds that tensor.

Which tensors are global and which train follows from the job's aggregation rule and the round (``aggregation.py``), on both sides.

Instead of its reply a node may send ``error`` (a code from the fixed list and a random incident id).
Next on the path: ``client/app.py`` answers these messages, ``server/loop.py`` sends them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, ConfigRecordValues, Message, RecordDict

from fedethos.errors import FedethosError
from fedethos.npy import is_npy

CONTRACT_VERSION = 1
SETUP, TRAIN, EVALUATE = "query.setup", "train", "evaluate"

ARRAYS, CONFIG, STATEMENT, COUNTS, ERROR = "arrays", "config", "statement", "counts", "error"

CODE = re.compile(r"[A-Z]{2,5}-\d{3}")
VERSION = re.compile(r"\d[0-9A-Za-z.+!_-]{0,31}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INCIDENT = re.compile(r"[0-9a-f]{0,32}")

_LAYOUT = {
    "cuts": list,
    "edge": int,
    "attribute": str,
    "group-cuts": list,
    "rules": list,
    "personal": bool,
}  # optional keys of an evaluate request
_N = TypeVar("_N", int, float)

SplitName = Literal["train", "validation", "test"]
Arrays = dict[str, npt.NDArray[np.float32]]
Tables = dict[str, npt.NDArray[np.int64]]


class Basis(Enum):
    """Why a field may leave a site (docs/privacy.md)."""

    PUBLIC = "public"  # fixed before any record was read
    CHARGED = "charged"  # output of a private mechanism whose cost is accounted
    UNPROTECTED = "unprotected"  # exact, because the job says privacy.mode: none


@dataclass(frozen=True)
class Request:
    """What every request says about itself.

    ``attempt`` counts how often the run was continued and this message sent again; ``refused``: the code with which the coordinator
    refused this site's last reply. For ``query.setup`` only: ``fedethos``, the coordinator's version; ``quarantined``: too many replies of
    this site were refused, and it is not asked again in this run. For ``train`` only: ``cell_weights`` in the order of
    ``fedethos/cells.py``. For ``evaluate`` only: ``split``, and which noisy tables a private job wants (``fairness/layout.py``): the inner
    edges ``cuts`` of the score table, the threshold ``edge`` of the group tables or, in its place, one decision rule for each group of
    ``attribute``; ``group_cuts``: those of the score table by group of ``attribute``; ``personal``: of the site's own adapter in place of
    the one in ``arrays`` (which stands in for one that is not there yet).
    """

    job_sha256: str
    run: str
    round: int
    attempt: int
    arrays: Arrays
    split: SplitName | None = None
    cuts: tuple[int, ...] | None = None
    edge: int | None = None
    attribute: str | None = None
    group_cuts: tuple[int, ...] | None = None
    rules: tuple[float, ...] | None = None
    cell_weights: tuple[float, ...] | None = None
    refused: str | None = None
    fedethos: str | None = None
    quarantined: bool = False
    personal: bool = False


@dataclass(frozen=True)
class SetupReply:
    fedethos: str
    model_sha256: str


@dataclass(frozen=True)
class TrainReply:
    """``arrays``: what trained in this round. ``epsilon`` is what all ``steps`` private steps so far cost; without
    privacy it is None and ``steps`` are those of this round."""

    arrays: Arrays
    basis: Basis
    unit: str
    adjacency: str
    epsilon: float | None
    delta: float | None
    steps: int


@dataclass(frozen=True)
class EvaluateReply:
    """``tables``: exact score histograms int64[groups, labels, bins] per attribute, or the tables that were asked for.

    ``sigma``: parameter of the discrete Gaussian noise in every cell; ``epsilon``: what the site has spent, this included. Both None
    for exact counts.
    """

    tables: Tables
    basis: Basis
    sigma: float | None = None
    epsilon: float | None = None


@dataclass(frozen=True)
class ErrorReply:
    code: str
    incident: str


Reply = SetupReply | TrainReply | EvaluateReply | ErrorReply


def encode_arrays(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ArrayRecord:
    """Sorted by name, so that equal contents have equal bytes."""
    return ArrayRecord({name: Array(np.ascontiguousarray(arrays[name])) for name in sorted(arrays)})


def decode_arrays(record: ArrayRecord, dtype: type[np.generic], code: str) -> dict[str, npt.NDArray[np.generic]]:
    """Arrays of exactly ``dtype``; any other dtype, and bytes that are no such array, are refused with ``code``."""
    arrays = {}
    for name, array in record.items():
        if array.dtype != np.dtype(dtype).name or array.stype != "numpy.ndarray":
            raise FedethosError(code, f"A tensor is {array.dtype}, not {np.dtype(dtype).name}.", where=name)
        if not is_npy(array.data, dtype, tuple(array.shape)):
            raise FedethosError(code, "The bytes of a tensor are not the array that its message describes.", where=name)
        arrays[name] = array.numpy()
    return arrays


def encode_request(message_type: str, request: Request) -> RecordDict:
    config: dict[str, ConfigRecordValues] = {
        "contract": CONTRACT_VERSION,
        "job-sha256": request.job_sha256,
        "run": request.run,
        "round": request.round,
        "attempt": request.attempt,
    }
    if message_type == EVALUATE:
        config["split"] = str(request.split)
        lists = {"cuts": request.cuts, "group-cuts": request.group_cuts, "rules": request.rules}
        config |= {name: list(numbers) for name, numbers in lists.items() if numbers is not None}
        if request.edge is not None:
            config["edge"] = request.edge
        if request.attribute is not None:
            config["attribute"] = request.attribute
        if request.personal:
            config["personal"] = True
    if message_type == TRAIN and request.cell_weights is not None:
        config["cell-weights"] = list(request.cell_weights)
    if message_type == SETUP and request.fedethos is not None:
        config["fedethos"] = request.fedethos
    if message_type == SETUP and request.quarantined:
        config["quarantined"] = True
    if request.refused is not None:
        config["refused"] = request.refused
    return RecordDict({ARRAYS: encode_arrays(request.arrays), CONFIG: ConfigRecord(config)})


def decode_request(message: Message) -> Request:
    """Refuse (SEC-630) whatever is not exactly a request of this contract."""
    content = message.content
    _expect_records(content, {ARRAYS: ArrayRecord, CONFIG: ConfigRecord})
    config = dict(content.config_records[CONFIG])
    config.pop("server-round", None)  # a Flower strategy adds it
    keys = {"contract": int, "job-sha256": str, "run": str, "round": int, "attempt": int}
    if message.metadata.message_type == EVALUATE:
        keys["split"] = str
        keys |= {name: kind for name, kind in _LAYOUT.items() if name in config}
    if message.metadata.message_type == TRAIN and "cell-weights" in config:
        keys["cell-weights"] = list
    if message.metadata.message_type == SETUP and "fedethos" in config:
        keys["fedethos"] = str
    if message.metadata.message_type == SETUP and "quarantined" in config:
        keys["quarantined"] = bool
    if "refused" in config:
        keys["refused"] = str
    if {name: type(value) for name, value in config.items()} != keys or config["contract"] != CONTRACT_VERSION:
        raise _malformed("the config record has other keys, types or another contract version")
    split = config.get("split")
    if split not in (None, "train", "validation", "test"):
        raise _malformed("the split is not train, validation or test")
    if (split == "train") != ("group-cuts" in config):
        raise _malformed("training people are counted in the score table by group, and nobody else is")
    refused, version = config.get("refused"), config.get("fedethos")
    if not _fits(refused, CODE) or not _fits(version, VERSION):
        raise _malformed("it names a code or a version in another form")
    edge, attribute = config.get("edge"), config.get("attribute")
    arrays = decode_arrays(content.array_records[ARRAYS], np.float32, "SEC-630")
    return Request(
        job_sha256=str(config["job-sha256"]),
        run=str(config["run"]),
        round=int(config["round"]),  # type: ignore[arg-type]
        attempt=int(config["attempt"]),  # type: ignore[arg-type]
        arrays=arrays,  # type: ignore[arg-type]
        split=split,  # type: ignore[arg-type]
        cuts=_numbers(config, "cuts", int),
        edge=edge if isinstance(edge, int) else None,
        attribute=attribute if isinstance(attribute, str) else None,
        group_cuts=_numbers(config, "group-cuts", int),
        rules=_numbers(config, "rules", float),
        cell_weights=_numbers(config, "cell-weights", float),
        refused=refused,  # type: ignore[arg-type]
        fedethos=version,  # type: ignore[arg-type]
        quarantined=config.get("quarantined") is True,
        personal=config.get("personal") is True,
    )


def repeated(content: RecordDict, times: int, refused: str | None) -> RecordDict:
    """A request's records once more, with the attempt ``times`` higher. Tensors are shared."""
    config = dict(content.config_records[CONFIG])
    config["attempt"] = int(config["attempt"]) + times  # type: ignore[arg-type]
    config.pop("refused", None)
    if refused is not None:
        config["refused"] = refused
    return RecordDict({ARRAYS: content.array_records[ARRAYS], CONFIG: ConfigRecord(config)})


def encode_reply(reply: Reply) -> RecordDict:
    """The reply's records and nothing else. A field without a basis cannot be built, so it cannot be sent."""
    if isinstance(reply, SetupReply):
        return RecordDict({STATEMENT: ConfigRecord({"fedethos": reply.fedethos, "model-sha256": reply.model_sha256})})
    if isinstance(reply, TrainReply):
        statement: dict[str, ConfigRecordValues] = {
            "basis": reply.basis.value,
            "unit": reply.unit,
            "adjacency": reply.adjacency,
            "steps": reply.steps,
        }
        if reply.epsilon is not None and reply.delta is not None:
            statement |= {"epsilon": reply.epsilon, "delta": reply.delta}
        return RecordDict({ARRAYS: encode_arrays(reply.arrays), STATEMENT: ConfigRecord(statement)})
    if isinstance(reply, EvaluateReply):
        noise: dict[str, ConfigRecordValues] = {"basis": reply.basis.value}
        if reply.sigma is not None and reply.epsilon is not None:
            noise |= {"sigma": reply.sigma, "epsilon": reply.epsilon}
        return RecordDict({COUNTS: encode_arrays(reply.tables), STATEMENT: ConfigRecord(noise)})
    return RecordDict({ERROR: ConfigRecord({"code": reply.code, "incident": reply.incident})})


def decode_reply(message_type: str, content: RecordDict) -> Reply:
    """Refuse (AGG-701) whatever is not exactly a reply of this contract."""
    if ERROR in content:
        _expect_records(content, {ERROR: ConfigRecord}, "AGG-701")
        return ErrorReply(_text(content, ERROR, "code", CODE), _text(content, ERROR, "incident", _INCIDENT))
    if message_type == SETUP:
        _expect_records(content, {STATEMENT: ConfigRecord}, "AGG-701")
        return SetupReply(_text(content, STATEMENT, "fedethos", VERSION), _text(content, STATEMENT, "model-sha256", _SHA256))
    if message_type == EVALUATE:
        _expect_records(content, {COUNTS: ArrayRecord, STATEMENT: ConfigRecord}, "AGG-701")
        tables = decode_arrays(content.array_records[COUNTS], np.int64, "AGG-701")
        said = dict(content.config_records[STATEMENT])
        noisy = {"basis": str, "sigma": float, "epsilon": float}
        if {name: type(value) for name, value in said.items()} not in ({"basis": str}, noisy):
            raise _malformed("the statement has other keys or types", "AGG-701")
        return EvaluateReply(tables, _basis(content), said.get("sigma"), said.get("epsilon"))  # type: ignore[arg-type]
    _expect_records(content, {ARRAYS: ArrayRecord, STATEMENT: ConfigRecord}, "AGG-701")
    statement = dict(content.config_records[STATEMENT])
    allowed = {"basis": str, "unit": str, "adjacency": str, "steps": int}
    if "epsilon" in statement:
        allowed |= {"epsilon": float, "delta": float}
    if {name: type(value) for name, value in statement.items()} != allowed:
        raise _malformed("the statement has other keys or types", "AGG-701")
    arrays = decode_arrays(content.array_records[ARRAYS], np.float32, "AGG-701")
    return TrainReply(
        arrays=arrays,  # type: ignore[arg-type]
        basis=_basis(content),
        unit=str(statement["unit"]),
        adjacency=str(statement["adjacency"]),
        epsilon=statement.get("epsilon"),  # type: ignore[arg-type]
        delta=statement.get("delta"),  # type: ignore[arg-type]
        steps=int(statement["steps"]),  # type: ignore[arg-type]
    )


def arrays_sha256(arrays: Mapping[str, npt.NDArray[np.generic]]) -> str:
    """Hash of names, shapes, dtypes and bytes, independent of order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _numbers(config: Mapping[str, object], name: str, kind: type[_N]) -> tuple[_N, ...] | None:
    numbers = config.get(name)
    if not isinstance(numbers, list):
        return None
    if not all(type(number) is kind for number in numbers):
        raise _malformed(f"{name} holds other than {'whole ' if kind is int else ''}numbers")
    return tuple(numbers)


def _fits(text: object, form: re.Pattern[str]) -> bool:
    return text is None or (isinstance(text, str) and form.fullmatch(text) is not None)


def _expect_records(content: RecordDict, kinds: Mapping[str, type], code: str = "SEC-630") -> None:
    if {name: type(record) for name, record in content.items()} != dict(kinds):
        raise _malformed("it does not hold exactly the records of its type", code)


def _text(content: RecordDict, record: str, key: str, form: re.Pattern[str]) -> str:
    value = content.config_records[record].get(key)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise _malformed(f"{record}.{key} is missing or has another form", "AGG-701")
    return value


def _basis(content: RecordDict) -> Basis:
    value = content.config_records[STATEMENT].get("basis")
    if not isinstance(value, str) or value not in {basis.value for basis in Basis}:
        raise _malformed("the basis is unknown", "AGG-701")
    return Basis(value)


def _malformed(what: str, code: str = "SEC-630") -> FedethosError:
    return FedethosError(code, f"A message does not follow the message contract: {what}.", fix="Compare the fedethos versions.")
