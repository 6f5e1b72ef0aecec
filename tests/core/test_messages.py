"""The message contract: what is right goes through unchanged, everything else is refused."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedethos.errors import FedethosError
from fedethos.flower import identify_process, rebuild_from_wire, wire_bytes
from fedethos.messages import (
    EVALUATE,
    SETUP,
    TRAIN,
    Basis,
    ErrorReply,
    EvaluateReply,
    Reply,
    Request,
    SetupReply,
    TrainReply,
    arrays_sha256,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    repeated,
)

ARRAYS = {"b": np.float32([[1, 2]]), "a": np.float32([3])}
TRAIN_REPLY = TrainReply(ARRAYS, Basis.CHARGED, "record", "add-remove", 1.5, 1e-5, 20)


@pytest.fixture(autouse=True)
def _identity() -> None:
    identify_process(run_id=1)


def request(message_type: str) -> Request:
    return Request(job_sha256="0" * 64, run="r", round=2, attempt=0, arrays=ARRAYS, split="test" if message_type == EVALUATE else None)


def message(message_type: str, content: RecordDict | None = None) -> Message:
    return Message(content or encode_request(message_type, request(message_type)), 5, message_type)


@pytest.mark.parametrize("message_type", [SETUP, TRAIN, EVALUATE])
def test_a_request_comes_back_whole_over_the_wire(message_type: str) -> None:
    content = rebuild_from_wire(wire_bytes(encode_request(message_type, request(message_type))))
    decoded = decode_request(message(message_type, content))
    assert decoded.arrays.keys() == ARRAYS.keys()
    assert all(np.array_equal(decoded.arrays[name], ARRAYS[name]) for name in ARRAYS)
    assert (decoded.job_sha256, decoded.run, decoded.round, decoded.split) == ("0" * 64, "r", 2, request(message_type).split)


def test_cell_weights_come_back_over_the_wire_and_only_training_has_them() -> None:
    weighted = replace(request(TRAIN), cell_weights=(0.0, 1.8, 1e300))
    decoded = decode_request(message(TRAIN, rebuild_from_wire(wire_bytes(encode_request(TRAIN, weighted)))))
    assert decoded.cell_weights == (0.0, 1.8, 1e300)
    assert decode_request(message(TRAIN)).cell_weights is None
    for message_type, weights in [(EVALUATE, [1.0]), (SETUP, [1.0]), (TRAIN, [1]), (TRAIN, ["1"]), (TRAIN, 1.0)]:
        content = encode_request(message_type, request(message_type))
        content.config_records["config"]["cell-weights"] = weights
        with pytest.raises(FedethosError, match="SEC-630"):
            decode_request(message(message_type, content))


def test_both_sides_are_told_of_a_refusal_and_of_the_version() -> None:
    for message_type in (SETUP, TRAIN, EVALUATE):
        told = encode_request(message_type, replace(request(message_type), refused="AGG-703"))
        assert decode_request(message(message_type, rebuild_from_wire(wire_bytes(told)))).refused == "AGG-703"
        assert decode_request(message(message_type)).refused is None
    setup = encode_request(SETUP, replace(request(SETUP), fedethos="0.2.0rc1"))
    assert decode_request(message(SETUP, setup)).fedethos == "0.2.0rc1"


@pytest.mark.parametrize(
    ("message_type", "name", "value"),
    [(TRAIN, "refused", "because of JANE DOE"), (TRAIN, "refused", 3), (TRAIN, "fedethos", "0.1.0"), (SETUP, "fedethos", "x" * 40)],
)
def test_a_request_has_no_room_for_free_text(message_type: str, name: str, value: object) -> None:
    content = encode_request(message_type, request(message_type))
    content.config_records["config"][name] = value
    with pytest.raises(FedethosError, match="SEC-630"):
        decode_request(message(message_type, content))


def test_a_repeated_request_says_so_and_shares_its_tensors() -> None:
    first = encode_request(TRAIN, replace(request(TRAIN), refused="AGG-703"))
    again = repeated(first, 2, None)
    assert (decode_request(message(TRAIN, again)).attempt, decode_request(message(TRAIN, again)).refused) == (2, None)
    assert again.array_records["arrays"] is first.array_records["arrays"]
    assert decode_request(message(TRAIN, first)).attempt == 0


@pytest.mark.parametrize(
    ("message_type", "reply"),
    [
        (TRAIN, ErrorReply("could not convert 'JANE DOE'", "ab12")),
        (TRAIN, ErrorReply("NODE-500", "JANE DOE")),
        (TRAIN, ErrorReply("[bold]NODE-500", "ab12")),
        (SETUP, SetupReply("<script>", "f" * 64)),
        (SETUP, SetupReply("0.1.0", "f" * 63)),
    ],
)
def test_a_reply_has_no_room_for_free_text(message_type: str, reply: Reply) -> None:
    with pytest.raises(FedethosError, match="AGG-701"):
        decode_reply(message_type, encode_reply(reply))


@pytest.mark.parametrize(
    "layout",
    [
        {"split": "train", "attribute": "sex", "group_cuts": (20, 32)},
        {"split": "test", "cuts": (5,), "attribute": "sex", "rules": (0.25, 0.25, 0.0, 1.0, 1.0)},
        {"split": "validation", "cuts": (5, 6), "edge": 30},
        {"split": "test", "cuts": (5,), "edge": 30, "personal": True},
    ],
)
def test_what_an_evaluation_asks_for_comes_back_whole(layout: dict[str, object]) -> None:
    asked = replace(request(EVALUATE), **layout)
    decoded = decode_request(message(EVALUATE, rebuild_from_wire(wire_bytes(encode_request(EVALUATE, asked)))))
    assert {name: getattr(decoded, name) for name in layout} == layout


@pytest.mark.parametrize(("name", "value"), [("rules", [1, 2]), ("group-cuts", [0.5]), ("cuts", [0.5]), ("attribute", 3)])
def test_numbers_of_another_kind_are_refused(name: str, value: object) -> None:
    content = encode_request(EVALUATE, request(EVALUATE))
    content.config_records["config"][name] = value
    with pytest.raises(FedethosError, match="SEC-630"):
        decode_request(message(EVALUATE, content))


@pytest.mark.parametrize(
    ("message_type", "reply"),
    [
        (SETUP, SetupReply("0.1.0", "f" * 64)),
        (TRAIN, TRAIN_REPLY),
        (TRAIN, TrainReply(ARRAYS, Basis.UNPROTECTED, "person", "add-remove", None, None, 20)),
        (EVALUATE, EvaluateReply({"sex": np.arange(12).reshape(3, 2, 2)}, Basis.UNPROTECTED)),
        (TRAIN, ErrorReply("NODE-500", "ab12")),
    ],
)
def test_a_reply_comes_back_whole_over_the_wire(message_type: str, reply: Reply) -> None:
    decoded = decode_reply(message_type, rebuild_from_wire(wire_bytes(encode_reply(reply))))
    assert type(decoded) is type(reply)
    for name, value in vars(reply).items():
        if isinstance(value, dict):
            assert all(np.array_equal(getattr(decoded, name)[key], value[key]) for key in value)
        else:
            assert getattr(decoded, name) == value


def spoiled_requests() -> list[RecordDict]:
    def changed(**config: object) -> RecordDict:
        content = encode_request(TRAIN, request(TRAIN))
        content.config_records["config"].update(config)
        return content

    extra_record = encode_request(TRAIN, request(TRAIN))
    extra_record["code"] = ConfigRecord({"run": "me"})
    no_config = RecordDict({"arrays": ArrayRecord()})
    double = RecordDict({**encode_request(TRAIN, request(TRAIN)), "arrays": ArrayRecord({"a": Array(np.float64([1]))})})
    no_key = encode_request(TRAIN, request(TRAIN))
    del no_key.config_records["config"]["run"]
    pickled = encode_request(TRAIN, request(TRAIN))
    pickled.array_records["arrays"]["a"] = Array("float32", (1,), "pickle", b"x")
    return [
        changed(contract=2),
        changed(extra=1),
        changed(round="2"),
        changed(split="test"),
        extra_record,
        no_config,
        double,
        no_key,
        pickled,
    ]


@pytest.mark.parametrize("index", range(9))
def test_a_request_that_is_not_the_contract_is_refused(index: int) -> None:
    with pytest.raises(FedethosError, match="SEC-630"):
        decode_request(message(TRAIN, spoiled_requests()[index]))


def test_a_node_is_asked_about_training_records_for_scores_by_group_only() -> None:
    content = encode_request(EVALUATE, request(EVALUATE))
    content.config_records["config"]["split"] = "train"
    with pytest.raises(FedethosError, match="SEC-630"):
        decode_request(message(EVALUATE, content))


def spoiled_replies() -> list[tuple[str, RecordDict]]:
    metric = encode_reply(TRAIN_REPLY)
    metric["metrics"] = MetricRecord({"loss": 0.1})
    statement = encode_reply(TRAIN_REPLY)
    statement.config_records["statement"]["train-loss"] = 0.3
    basis = encode_reply(TRAIN_REPLY)
    basis.config_records["statement"]["basis"] = "because"
    floats = encode_reply(EvaluateReply({"sex": np.zeros((2, 2, 2), dtype=np.int64)}, Basis.UNPROTECTED))
    floats.array_records["counts"]["sex"] = Array(np.zeros((2, 2, 2)))
    long_error = encode_reply(ErrorReply("NODE-500", "x" * 10_000))
    and_error = encode_reply(TRAIN_REPLY)
    and_error["error"] = ConfigRecord({"code": "NODE-500", "incident": ""})
    return [
        (TRAIN, metric),
        (TRAIN, statement),
        (TRAIN, basis),
        (EVALUATE, floats),
        (TRAIN, long_error),
        (TRAIN, and_error),
        (SETUP, metric),
    ]


@pytest.mark.parametrize("index", range(7))
def test_a_reply_that_is_not_the_contract_is_refused(index: int) -> None:
    message_type, content = spoiled_replies()[index]
    with pytest.raises(FedethosError, match="AGG-701"):
        decode_reply(message_type, content)


def test_equal_arrays_have_equal_bytes_and_hash_in_any_order() -> None:
    backwards = dict(reversed(ARRAYS.items()))
    assert arrays_sha256(ARRAYS) == arrays_sha256(backwards)
    one = wire_bytes(encode_reply(TRAIN_REPLY))
    other = wire_bytes(encode_reply(TrainReply(backwards, Basis.CHARGED, "record", "add-remove", 1.5, 1e-5, 20)))
    assert one == other
    assert arrays_sha256(ARRAYS) != arrays_sha256({**ARRAYS, "a": np.float32([4])})
