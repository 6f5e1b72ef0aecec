"""A hostile coordinator gets nothing but refusals: one test for each thing it could try, and for anything at all."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedethos.client.approvals import Approval
from fedethos.client.error_guard import LEAVING
from fedethos.client.gatekeeper import check_request, named_job
from fedethos.client.history import FILE, History
from fedethos.errors import FedethosError
from fedethos.messages import CONFIG, EVALUATE, SETUP, TRAIN, encode_request
from fedethos.site import SiteDocument

from .conftest import NOON, RUN, Hospital, message


def ask(hospital: Hospital, asked: Message, *, now: datetime = NOON) -> str:
    """'ok', or the code of the refusal."""
    with History(hospital.state / FILE) as history:
        try:
            check_request(asked, hospital.approval(), hospital.site, history, now)
        except FedethosError as refusal:
            return refusal.code
    return "ok"


def with_config(asked: Message, **changes: object) -> Message:
    config = {name.replace("_", "-"): value for name, value in changes.items()}
    asked.content[CONFIG] = ConfigRecord({**asked.content.config_records[CONFIG], **config})
    return asked


def test_honest_requests_pass(hospital) -> None:
    setup = message(SETUP, encode_request(SETUP, hospital.request(round=0, arrays={})), "m0")
    assert named_job(setup) == hospital.job.sha256
    assert ask(hospital, setup) == "ok"
    assert ask(hospital, hospital.train(message_id="m1")) == "ok"
    assert ask(hospital, hospital.evaluate(message_id="m2")) == "ok"


def test_a_job_that_was_not_approved_gets_nothing(hospital) -> None:
    assert ask(hospital, hospital.train(job_sha256="0" * 64)) == "SEC-610"


@pytest.mark.parametrize("round", [0, -1, 4, 10**9])
def test_more_rounds_than_approved_get_nothing(hospital, round: int) -> None:
    assert ask(hospital, hospital.train(round=round)) == "SEC-631"


@pytest.mark.parametrize("key", ["max_grad_norm", "noise_multiplier", "epsilon", "local_steps", "code", "job"])
def test_clipping_noise_and_code_have_no_place_in_a_request(hospital, key: str) -> None:
    """A clip of 1e9 or a noise of 0 cannot even be said: those stand in the approved job."""
    assert ask(hospital, with_config(hospital.train(), **{key: 1e9})) == "SEC-630"
    assert ask(hospital, with_config(hospital.train(), **{key: 0.0})) == "SEC-630"


def test_a_code_bundle_gets_nothing(hospital) -> None:
    asked = hospital.train()
    asked.content["fab"] = ConfigRecord({"content": b"PK\x03\x04 import os"})
    assert ask(hospital, asked) == "SEC-630"
    asked = hospital.train()
    asked.content["metrics"] = MetricRecord({"x": 1.0})
    assert ask(hospital, asked) == "SEC-630"


@pytest.mark.parametrize("kind", ["query.run", "train.code", "query.get_fab", "evaluate.x"])
def test_unknown_kinds_of_messages_get_nothing(hospital, kind: str) -> None:
    assert ask(hospital, message(kind, encode_request(TRAIN, hospital.request()))) == "SEC-630"


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"layers.0.bias": np.zeros(2, np.float32)},
        {"layers.0.bias": np.zeros(2, np.float32), "layers.0.weight": np.zeros((2, 3), np.float32)},
        {"layers.0.bias": np.zeros(2, np.float32), "layers.0.weights": np.zeros((2, 2), np.float32)},
        {"lm_head.weight": np.zeros((2, 2), np.float32), "layers.0.bias": np.zeros(2, np.float32)},
    ],
)
def test_a_foreign_adapter_gets_nothing(hospital, arrays: dict[str, np.ndarray]) -> None:
    assert ask(hospital, hospital.train(arrays=arrays)) == "SEC-632"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e9])
def test_an_adapter_that_would_spoil_the_model_gets_nothing(hospital, value: float) -> None:
    arrays = {name: array.copy() for name, array in hospital.arrays.items()}
    arrays["layers.0.weight"][0, 1] = value
    assert ask(hospital, hospital.train(arrays=arrays)) == "SEC-636"


def test_an_adapter_of_another_dtype_gets_nothing(hospital) -> None:
    asked = hospital.train()
    asked.content["arrays"] = ArrayRecord({name: Array(array.astype(np.float64)) for name, array in hospital.arrays.items()})
    assert ask(hospital, asked) in ("SEC-630", "SEC-633")


def lying(array: np.ndarray, **claims: object) -> Array:
    honest = Array(array)
    facts = {"dtype": honest.dtype, "shape": honest.shape, "stype": honest.stype, "data": honest.data, **claims}
    return Array(facts["dtype"], facts["shape"], facts["stype"], facts["data"])


@pytest.mark.parametrize(
    "lie",
    [
        lying(np.zeros((2, 2), np.float64), dtype="float32"),
        lying(np.zeros((2, 3), np.float32), shape=(2, 2)),
        lying(np.zeros((2, 2), np.float32), data=Array(np.zeros((2, 2), np.float32)).data + b"hidden"),
        lying(np.zeros((2, 2), np.float32), data=Array(np.zeros((2, 2), np.float32)).data[:-1]),
        lying(np.zeros((2, 2), np.float32), data=b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2), }"),
        lying(np.zeros((2, 2), np.float32), data=b"cos\nsystem\n(S'echo'\ntR."),
        lying(np.zeros((2, 2), np.float32), stype="pickle"),
    ],
)
def test_bytes_that_are_not_the_tensor_they_claim_to_be_get_nothing(hospital, lie: Array) -> None:
    asked = hospital.train()
    asked.content["arrays"] = ArrayRecord({"layers.0.bias": Array(np.zeros(2, np.float32)), "layers.0.weight": lie})
    assert ask(hospital, asked) == "SEC-630"


def weighing(open_hospital) -> Hospital:
    opened = open_hospital(job={"fairness": {"cell_weights": {"Female": {">50K": 2.0}}, "max_weight": 5.0}})
    opened.approve()
    return opened


def test_cell_weights_of_1e9_get_nothing(open_hospital) -> None:
    hospital = weighing(open_hospital)
    assert ask(hospital, hospital.train(message_id="m1", cell_weights=(1.0,) * 6)) == "ok"
    assert ask(hospital, hospital.train(message_id="m2", cell_weights=(1.0, 5.0) * 3)) == "ok"
    assert ask(hospital, hospital.train(message_id="m3", cell_weights=(1.0,) * 5 + (1e9,))) == "SEC-643"
    assert ask(hospital, hospital.train(message_id="m3", cell_weights=(1.0,) * 5 + (5.1,))) == "SEC-643"
    assert ask(hospital, hospital.train(message_id="m3", cell_weights=(1.0,) * 5 + (float("nan"),))) == "SEC-642"
    assert ask(hospital, hospital.train(message_id="m3", cell_weights=(-1.0,) * 6)) == "SEC-642"
    assert ask(hospital, hospital.train(message_id="m3", cell_weights=(1.0,) * 7)) == "SEC-641"
    assert ask(hospital, hospital.train(message_id="m3")) == "SEC-640"


def test_weights_in_a_job_without_weights_get_nothing(hospital) -> None:
    assert ask(hospital, hospital.train(cell_weights=(1.0,) * 6)) == "SEC-640"


def test_exact_counts_of_a_private_job_get_nothing(hospital) -> None:
    assert ask(hospital, hospital.evaluate(cuts=None, edge=None)) == "PRIV-330"


def test_counts_that_the_job_does_not_name_get_nothing(hospital) -> None:
    assert ask(hospital, hospital.evaluate(split="train", cuts=None, edge=None, attribute="sex", group_cuts=(32,))) == "SEC-651"
    assert ask(hospital, hospital.evaluate(cuts=(3, 2))) == "AGG-734"
    assert ask(hospital, hospital.evaluate(edge=10**6)) == "AGG-734"


def test_a_huge_config_gets_nothing(hospital) -> None:
    assert ask(hospital, with_config(hospital.train(), run="x" * 10_000_000)) == "SEC-633"
    assert ask(hospital, with_config(hospital.train(), **{f"key{n}": n for n in range(100_000)})) == "SEC-633"
    assert ask(hospital, hospital.evaluate(cuts=tuple(range(1, 1_000_000)))) == "SEC-633"


def test_a_huge_message_gets_nothing(hospital) -> None:
    assert ask(hospital, hospital.train(arrays={**hospital.arrays, "more": np.zeros(10_000_000, np.float32)})) == "SEC-633"
    empty = {f"n{number}": np.zeros(0, np.float32) for number in range(10_000)}
    assert ask(hospital, hospital.train(arrays={**hospital.arrays, **empty})) == "SEC-633"


@pytest.mark.parametrize("run", ["", "triage", "other-0123abcd", "triage-0123ABCD", "triage-../../../", "triage-0123abcd\n"])
def test_a_run_of_another_name_gets_nothing(hospital, run: str) -> None:
    assert ask(hospital, hospital.train(run=run)) == "SEC-633"


@pytest.mark.parametrize("attempt", [-1, 10**6])
def test_attempts_that_nobody_makes_get_nothing(hospital, attempt: int) -> None:
    assert ask(hospital, hospital.train(attempt=attempt)) == "SEC-633"


def test_a_replayed_message_gets_nothing(hospital) -> None:
    assert ask(hospital, hospital.train(message_id="m1")) == "ok"
    assert ask(hospital, hospital.train(message_id="m1")) == "SEC-634"
    assert ask(hospital, hospital.train(message_id="m1", round=2)) == "SEC-634"


def test_a_round_may_be_asked_for_again_but_a_run_does_not_go_back(hospital) -> None:
    for number, round in enumerate([1, 2, 2, 3, 2]):
        assert ask(hospital, hospital.train(message_id=f"m{number}", round=round, attempt=number)) == "ok"
    assert ask(hospital, hospital.train(message_id="back", round=1)) == "SEC-634"
    assert ask(hospital, hospital.evaluate(message_id="back", round=0)) == "SEC-634"
    assert ask(hospital, hospital.train(message_id="other run", round=1, run="triage-99999999")) == "ok"


def test_a_refused_message_leaves_no_trace_in_the_history(hospital) -> None:
    assert ask(hospital, hospital.train(round=99)) == "SEC-631"
    assert ask(hospital, hospital.train(round=3, arrays={})) == "SEC-632"
    assert ask(hospital, hospital.train(round=1)) == "ok"


def test_a_message_from_the_own_inbox_is_checked_again_in_all_else(hospital) -> None:
    assert ask(hospital, hospital.train()) == "ok"
    assert check_request(hospital.train(), hospital.approval(), hospital.site, None, NOON).run == RUN
    with pytest.raises(FedethosError, match="SEC-631"):
        check_request(hospital.train(round=9), hospital.approval(), hospital.site, None, NOON)


def test_a_damaged_history_answers_nothing(hospital) -> None:
    hospital.state.mkdir(exist_ok=True)
    (hospital.state / FILE).write_bytes(b"no database at all, but long enough to look at" * 100)
    with pytest.raises(FedethosError, match="SEC-639"):
        History(hospital.state / FILE)


def test_training_waits_for_the_hours_of_the_site(open_hospital) -> None:
    hours = [(NOON + timedelta(hours=shift)).astimezone().strftime("%H:%M") for shift in (-1, 1, 2)]
    hospital = open_hospital(site={"hours": f"{hours[0]}-{hours[1]}"})
    hospital.approve()
    assert ask(hospital, hospital.train(message_id="m1")) == "ok"
    hospital = open_hospital(site={"hours": f"{hours[1]}-{hours[2]}"})
    assert ask(hospital, hospital.train(message_id="m2")) == "NODE-530"
    assert ask(hospital, hospital.evaluate(message_id="m3")) == "ok"
    overnight = open_hospital(site={"hours": f"{hours[2]}-{hours[1]}"})
    assert ask(overnight, overnight.train(message_id="m4", round=3)) == "ok"


def test_a_job_without_privacy_needs_the_consent_of_the_site(open_hospital) -> None:
    bare = {"privacy": {"mode": "none", "epsilon": None}}
    hospital = open_hospital(job=bare)
    hospital.approve()
    assert ask(hospital, hospital.train()) == "PRIV-360"
    hospital = open_hospital(job=bare, site={"allow_unprotected": True})
    assert ask(hospital, hospital.train()) == "ok"
    assert ask(hospital, hospital.evaluate(message_id="m2", cuts=None, edge=None)) == "ok"


def test_more_rounds_than_the_site_allows_get_nothing(open_hospital) -> None:
    hospital = open_hospital(site={"caps": {"rounds": 2}})
    hospital.approve()
    assert ask(hospital, hospital.train()) == "PRIV-311"


VALUES = st.one_of(
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
    st.booleans(),
    st.lists(st.floats(), max_size=8),
    st.lists(st.integers(-10, 100), max_size=8),
    st.lists(st.text(max_size=3), max_size=3),
)
CONFIG_KEYS = ["contract", "job-sha256", "run", "round", "attempt", "split", "cuts", "edge", "attribute", "group-cuts", "rules", "noise"]
KEYS = st.sampled_from([*CONFIG_KEYS, "cell-weights", "quarantined", "server-round", "x"])


@dataclass(frozen=True)
class Approved:
    hospital: Hospital
    approval: Approval
    site: SiteDocument


@pytest.fixture
def approved(hospital) -> Approved:
    return Approved(hospital, hospital.approval(), hospital.site)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([SETUP, TRAIN, EVALUATE, "query.x"]),
    changes=st.dictionaries(KEYS, VALUES, max_size=4),
    dropped=st.sets(KEYS, max_size=2),
    name=st.sampled_from(["layers.0.weight", "layers.0.bias", "other", "a.lora_B.weight", "a.residual_B.weight"]),
    shape=st.lists(st.integers(0, 3), max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "float64", "int64", "bool"]),
    value=st.sampled_from([0.0, 1.0, np.nan, np.inf]),
    tail=st.binary(max_size=3),
)
def test_whatever_a_coordinator_sends_passes_as_approved_or_is_refused_by_a_code_that_may_leave(
    approved, kind, changes, dropped, name, shape, dtype, value, tail
) -> None:
    hospital = approved.hospital
    asked = hospital.train() if kind == TRAIN else hospital.evaluate()
    config = {key: item for key, item in {**asked.content.config_records[CONFIG], **changes}.items() if key not in dropped}
    with np.errstate(invalid="ignore"):
        values = np.full(shape, value).astype(dtype)
    array = Array(values)
    arrays = {
        **{key: Array(item) for key, item in hospital.arrays.items()},
        name: lying(values, data=array.data + tail),
    }
    content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord(config)})
    try:
        passed = check_request(message(kind, content), approved.approval, approved.site, None, NOON)
    except FedethosError as refusal:
        assert refusal.code in LEAVING
        return
    assert passed.job_sha256 == hospital.job.sha256 and passed.run.startswith("triage-")
    assert {key: item.shape for key, item in passed.arrays.items()} == hospital.tensors
    assert all(np.isfinite(item).all() and item.dtype == np.float32 for item in passed.arrays.values())
    assert 0 <= passed.round <= hospital.job.federation.rounds


def test_the_hours_of_a_site_are_local_whatever_zone_the_clock_speaks(open_hospital) -> None:
    hospital = open_hospital(site={"hours": "00:00-23:59"})
    assert hospital.site.may_train_at(datetime(2026, 1, 1, 12, 0, tzinfo=UTC))
    assert open_hospital(site={"hours": None}).site.may_train_at(NOON)


LAYER = "base_model.model.encoder.q"
PAIR = {f"{LAYER}.lora_A.weight": (2, 6), f"{LAYER}.lora_B.weight": (4, 2)}


@pytest.fixture
def with_residual(open_hospital) -> tuple[Hospital, Approval]:
    """A job of fedex, which lets a residual travel with its adapter: layers of 4 x 6, rank 2."""
    job = {
        "task": "text-classification",
        "model": {"path": "some-encoder"},
        "data": {"text": "{age} years old", "features": None},
        "federation": {"aggregation": "fedex"},
    }
    hospital = open_hospital(job=job)
    hospital = Hospital(hospital.folder, hospital.job, hospital.site, PAIR)
    hospital.approve_with(base_sha256="0" * 64)
    return hospital, hospital.approval()


def residual(b: tuple[int, ...] | None, a: tuple[int, ...] | None, layer: str = LAYER) -> dict[str, np.ndarray]:
    parts = {f"{layer}.residual_B.weight": b, f"{layer}.residual_A.weight": a}
    return {name: np.zeros(shape, np.float32) for name, shape in parts.items() if shape is not None}


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        ({}, "ok"),
        (residual((4, 1), (1, 6)), "ok"),
        (residual((4, 4), (4, 6)), "ok"),
        (residual((4, 5), (5, 6)), "SEC-645"),
        (residual((4, 0), (0, 6)), "SEC-645"),
        (residual((4, 2), (3, 6)), "SEC-645"),
        (residual((6, 2), (2, 4)), "SEC-645"),
        (residual((4, 2), None), "SEC-645"),
        (residual(None, (2, 6)), "SEC-645"),
        (residual((4,), (6,)), "SEC-645"),
        (residual((4, 2), (2, 6), "base_model.model.classifier"), "SEC-645"),
        (residual((4, 2_000), (2_000, 6)), "SEC-633"),
    ],
)
def test_a_residual_fits_the_adapted_layers_or_gets_nothing(with_residual, extra: dict[str, np.ndarray], code: str) -> None:
    hospital, approval = with_residual
    asked = hospital.train(arrays={**hospital.arrays, **extra})
    try:
        check_request(asked, approval, hospital.site, None, NOON)
        assert code == "ok"
    except FedethosError as refusal:
        assert refusal.code == code


def test_a_residual_has_no_place_in_setup_or_in_another_job(with_residual, hospital) -> None:
    extra = residual((2, 1), (1, 2), "layers.0")
    assert ask(hospital, hospital.train(arrays={**hospital.arrays, **extra})) in ("SEC-632", "SEC-633")
    lora, approval = with_residual
    setup = message(SETUP, encode_request(SETUP, lora.request(round=0, arrays=residual((4, 1), (1, 6)))), "m0")
    with pytest.raises(FedethosError, match="SEC-63"):
        check_request(setup, approval, lora.site, None, NOON)
