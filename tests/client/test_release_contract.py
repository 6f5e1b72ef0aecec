"""Nothing leaves a site but what was agreed and paid for, whatever a broken worker hands over."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedethos.aggregation import HEAD_CENTER
from fedethos.client.app import build_client_app
from fedethos.client.approvals import Approval
from fedethos.client.error_guard import LEAVING
from fedethos.client.gatekeeper import check_request
from fedethos.client.node import Node
from fedethos.client.release_contract import check_reply
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.messages import (
    EVALUATE,
    SETUP,
    TRAIN,
    Basis,
    ErrorReply,
    EvaluateReply,
    Request,
    SetupReply,
    TrainReply,
    decode_reply,
    encode_reply,
    encode_request,
)
from fedethos.privacy.ledger import Ledger
from fedethos.progress import Silent
from fedethos.simulations.virtual_sites import open_federation

from .conftest import NOON, RUN, Hospital, message


class Working:
    """An approved site with a real node and its ledger."""

    def __init__(self, hospital: Hospital, node: Node) -> None:
        self.hospital, self.node = hospital, node
        self.approval: Approval = hospital.approval()
        self.ledger: Path | None = hospital.folder / "ledger.sqlite"

    def answer(self, kind: str, request: Request) -> RecordDict:
        app = build_client_app(lambda context: self.node)
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        content = app(message(kind, encode_request(kind, request)), context).content
        assert "error" not in content
        return content

    def check(self, kind: str, request: Request, reply: RecordDict) -> str:
        try:
            check_reply(kind, request, reply, self.approval, self.ledger)
        except FedethosError as refusal:
            assert refusal.code in LEAVING
            return refusal.code
        return "ok"


@pytest.fixture
def work(open_hospital) -> Iterator[Callable[..., Working]]:
    opened = []

    def start(**documents: dict[str, object]) -> Working:
        hospital = open_hospital(**documents)
        hospital.approve()
        federation = open_federation(
            hospital.job,
            base=hospital.folder,
            scratch=hospital.folder,
            ledger=hospital.folder / "ledger.sqlite",
            observer=Silent(),
            run=RUN,
        )
        opened.append(federation)
        return Working(hospital, federation.__enter__().nodes[1])

    yield start
    for federation in opened:
        federation.__exit__(None, None, None)


@pytest.fixture
def working(work) -> Working:
    result: Working = work()
    return result


COUNTS = {"round": 3, "split": "test", "cuts": (20, 32), "edge": 30}


def test_what_an_honest_node_answers_may_leave(working) -> None:
    train, counts = working.hospital.request(), working.hospital.request(**COUNTS)
    setup = working.hospital.request(round=0, arrays={})
    assert working.check(SETUP, setup, working.answer(SETUP, setup)) == "ok"
    update = working.answer(TRAIN, train)
    assert working.check(TRAIN, train, update) == "ok"
    assert working.check(TRAIN, train, working.answer(TRAIN, train)) == "ok"  # the stored bytes again
    assert working.check(EVALUATE, counts, working.answer(EVALUATE, counts)) == "ok"
    assert working.check(TRAIN, train, encode_reply(ErrorReply("NODE-500", "0123456789abcdef"))) == "ok"


def test_an_update_that_nobody_paid_for_is_held_back(working) -> None:
    request = working.hospital.request()
    reply = decode_reply(TRAIN, working.answer(TRAIN, request))
    assert isinstance(reply, TrainReply)
    exact = replace(reply, arrays={name: array + 1 for name, array in reply.arrays.items()})
    assert working.check(TRAIN, request, encode_reply(exact)) == "SEC-663"
    assert working.check(TRAIN, request, encode_reply(replace(reply, epsilon=reply.epsilon / 2))) == "SEC-663"
    assert working.check(TRAIN, replace(request, round=2), encode_reply(reply)) == "SEC-663"
    assert working.check(TRAIN, replace(request, run="triage-ffffffff"), encode_reply(reply)) == "SEC-663"
    working.ledger = None
    assert working.check(TRAIN, request, encode_reply(reply)) == "SEC-663"


def test_counts_that_nobody_paid_for_are_held_back(working) -> None:
    request = working.hospital.request(**COUNTS)
    reply = decode_reply(EVALUATE, working.answer(EVALUATE, request))
    assert isinstance(reply, EvaluateReply)
    exact = replace(reply, tables={name: table + 1 for name, table in reply.tables.items()})
    assert working.check(EVALUATE, request, encode_reply(exact)) == "SEC-663"
    assert working.check(EVALUATE, request, encode_reply(replace(reply, sigma=9.0))) == "SEC-663"
    bare = EvaluateReply(reply.tables, Basis.UNPROTECTED)
    assert working.check(EVALUATE, request, encode_reply(bare)) in ("SEC-661", "SEC-662")
    assert working.check(EVALUATE, replace(request, cuts=(21, 32)), encode_reply(reply)) == "ok"  # same tables, whatever the edges
    assert working.check(EVALUATE, replace(request, cuts=(20,)), encode_reply(reply)) == "SEC-661"


def test_counts_of_a_scenario_leave_as_the_approved_job_names_it(work) -> None:
    older = {"name": "older", "filter": {"age": [">=50"]}, "metric": "error_rate", "limit": 0.3}
    working = work(job={"scenarios": [older]})
    request = working.hospital.request(**COUNTS)
    reply = decode_reply(EVALUATE, working.answer(EVALUATE, request))
    assert isinstance(reply, EvaluateReply)
    assert set(reply.tables) == {":scores", "sex", "scenario:older"}
    assert working.check(EVALUATE, request, encode_reply(reply)) == "ok"
    without = {name: table for name, table in reply.tables.items() if name != "scenario:older"}
    renamed = {**without, "scenario:younger": reply.tables["scenario:older"]}
    for tables in (without, renamed):
        assert working.check(EVALUATE, request, encode_reply(replace(reply, tables=tables))) == "SEC-661"
    changed = {**reply.tables, "scenario:older": reply.tables["scenario:older"] + 1}
    assert working.check(EVALUATE, request, encode_reply(replace(reply, tables=changed))) == "SEC-663"


def test_an_update_without_privacy_is_held_back_in_a_private_job(working) -> None:
    request = working.hospital.request()
    bare = TrainReply(request.arrays, Basis.UNPROTECTED, "record", "add-remove", None, None, 2)
    assert working.check(TRAIN, request, encode_reply(bare)) == "SEC-662"


def test_a_job_without_privacy_sends_exact_updates_and_counts(work) -> None:
    working = work(job={"privacy": {"mode": "none", "epsilon": None}}, site={"allow_unprotected": True})
    working.ledger = None
    train, counts = working.hospital.request(), working.hospital.request(round=1, split="validation")
    assert working.check(TRAIN, train, working.answer(TRAIN, train)) == "ok"
    tables = working.answer(EVALUATE, counts)
    assert working.check(EVALUATE, counts, tables) == "ok"
    reply = decode_reply(EVALUATE, tables)
    assert isinstance(reply, EvaluateReply)
    negative = replace(reply, tables={name: table - 1 for name, table in reply.tables.items()})
    assert working.check(EVALUATE, counts, encode_reply(negative)) == "SEC-661"
    claimed = replace(reply, sigma=1.0, epsilon=1.0)
    assert working.check(EVALUATE, counts, encode_reply(claimed)) == "SEC-662"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"unit": "person"}, "SEC-662"),
        ({"adjacency": "replace-one"}, "SEC-662"),
        ({"delta": 1e-3}, "SEC-662"),
        ({"epsilon": 5.0}, "SEC-662"),
        ({"epsilon": float("nan")}, "SEC-662"),
        ({"steps": -1}, "SEC-662"),
        ({"unit": "JANE DOE"}, "SEC-662"),
        ({"arrays": {}}, "SEC-661"),
    ],
)
def test_another_statement_than_the_jobs_is_held_back(working, change: dict[str, object], code: str) -> None:
    request = working.hospital.request()
    reply = decode_reply(TRAIN, working.answer(TRAIN, request))
    assert working.check(TRAIN, request, encode_reply(replace(reply, **change))) == code


def test_other_tensors_are_held_back(working) -> None:
    request = working.hospital.request()
    reply = decode_reply(TRAIN, working.answer(TRAIN, request))
    assert isinstance(reply, TrainReply)
    more = {**reply.arrays, "records": np.zeros(100, np.float32)}
    wider = {**reply.arrays, "layers.0.weight": np.zeros((2, 3), np.float32)}
    spoiled = {name: np.full_like(array, np.nan) for name, array in reply.arrays.items()}
    for arrays in (more, wider, spoiled):
        assert working.check(TRAIN, request, encode_reply(replace(reply, arrays=arrays))) == "SEC-661"


def test_metrics_names_and_texts_are_held_back(working) -> None:
    request = working.hospital.request()
    for extra in (MetricRecord({"loss": 0.1}), ConfigRecord({"note": "JANE DOE"}), ArrayRecord({"x": Array(np.zeros(1))})):
        reply = working.answer(TRAIN, request)
        reply["more"] = extra
        assert working.check(TRAIN, request, reply) == "SEC-660"
    reply = working.answer(TRAIN, request)
    reply["statement"] = ConfigRecord({**reply.config_records["statement"], "loss": 0.1})
    assert working.check(TRAIN, request, reply) == "SEC-660"
    setup = working.hospital.request(round=0, arrays={})
    reply = working.answer(SETUP, setup)
    reply["statement"] = ConfigRecord({**reply.config_records["statement"], "host": "ward-7"})
    assert working.check(SETUP, setup, reply) == "SEC-660"


def test_bytes_beside_the_numbers_are_held_back(working) -> None:
    request = working.hospital.request()
    reply = working.answer(TRAIN, request)
    honest = {name: (item.dtype, item.shape, item.stype, item.data) for name, item in reply.array_records["arrays"].items()}
    for spoil in (lambda data: data + b"x", lambda data: data.replace(b"  \n", b" x\n"), lambda data: data.replace(b"  \n", b"\t \n")):
        arrays = {name: Array(dtype, shape, stype, spoil(data)) for name, (dtype, shape, stype, data) in honest.items()}
        reply["arrays"] = ArrayRecord(arrays)
        assert working.check(TRAIN, request, reply) == "SEC-660"
    reply["arrays"] = ArrayRecord({name: Array(*honest[name]) for name in sorted(honest, reverse=True)})
    assert working.check(TRAIN, request, reply) == "SEC-660"  # the order could say something


@pytest.mark.parametrize(
    "error",
    [
        {"code": "could not convert 'JANE DOE'", "incident": "0123456789abcdef"},
        {"code": "DATA-121", "incident": "0123456789abcdef"},
        {"code": "NODE-500", "incident": "JANE DOE"},
        {"code": "NODE-500", "incident": "0123456789ABCDEF"},
        {"code": "NODE-500", "incident": "0123456789abcdef", "why": "JANE DOE"},
        {"code": "NODE-500"},
    ],
)
def test_an_error_is_a_code_of_the_list_and_a_random_number(working, error: dict[str, str]) -> None:
    assert working.check(TRAIN, working.hospital.request(), RecordDict({"error": ConfigRecord(error)})) == "SEC-660"


def test_another_base_model_or_version_is_held_back(working) -> None:
    setup = working.hospital.request(round=0, arrays={})
    honest = decode_reply(SETUP, working.answer(SETUP, setup))
    assert isinstance(honest, SetupReply)
    assert working.check(SETUP, setup, encode_reply(replace(honest, model_sha256="0" * 64))) == "SEC-662"
    assert working.check(SETUP, setup, encode_reply(replace(honest, fedethos="9.9"))) == "SEC-662"


def test_a_damaged_ledger_lets_nothing_out(working) -> None:
    request = working.hospital.request()
    reply = working.answer(TRAIN, request)
    assert working.ledger is not None
    working.ledger.with_name("ledger.sqlite.head").unlink()
    with pytest.raises(FedethosError, match="PRIV-312"):
        check_reply(TRAIN, request, reply, working.approval, working.ledger)


def test_a_reply_recorded_in_another_account_is_held_back(working) -> None:
    request = working.hospital.request()
    reply = working.answer(TRAIN, request)
    working.approval = replace(working.approval, account="others")
    assert working.check(TRAIN, request, reply) == "SEC-663"
    assert working.ledger is not None
    with Ledger(working.ledger) as ledger:
        assert "others" not in ledger.accounts


WORDS = st.one_of(
    st.text(max_size=12), st.binary(max_size=8), st.floats(), st.integers(-(2**40), 2**40), st.lists(st.integers(), max_size=3)
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([SETUP, TRAIN, EVALUATE]),
    record=st.sampled_from(["arrays", "statement", "counts", "error", "metrics", "x"]),
    said=st.dictionaries(st.sampled_from(["basis", "unit", "epsilon", "steps", "code", "incident", "fedethos", "n"]), WORDS, max_size=4),
    values=st.lists(st.sampled_from([0.0, 1.5, float("nan")]), min_size=1, max_size=4),
)
def test_nothing_passes_that_the_node_did_not_build_and_the_ledger_did_not_record(working, kind, record, said, values) -> None:
    request = working.hospital.request() if kind == TRAIN else working.hospital.request(**COUNTS)
    reply = working.answer(kind, request) if kind != SETUP else RecordDict()
    reply[record] = ArrayRecord({"x": Array(np.array(values))}) if record in ("arrays", "counts") else ConfigRecord(said)
    assert working.check(kind, request, reply) in LEAVING


def test_a_paid_centre_of_the_heads_input_may_leave_and_a_changed_one_not(open_hospital, write_job, tmp_path: Path) -> None:
    """Round 0 of a text job: gatekeeper, node and release contract of one site."""
    names = ("hospital-a", "hospital-b", "hospital-c")
    sites = {name: {"declared_size": 300} for name in names}
    text = load_job(
        write_job(name="triage", training={"center_head": "on"}, federation={"sites": sites}, privacy={"epsilon": 4.0, "engine": "fused"})
    )
    tabular = open_hospital()
    with open_federation(
        text, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "ledger.sqlite", observer=Silent(), run=RUN
    ) as federation:
        node = federation.nodes[1]
        sent = node.model.read()
        hospital = replace(tabular, job=text, tensors={name: array.shape for name, array in sent.items()})
        hospital.approve_with(base_sha256=node.model.base_sha256)
        site = Working(hospital, node)
        request = hospital.request(round=0, arrays=sent)
        answer = site.answer(TRAIN, request)
        assert site.check(TRAIN, request, answer) == "ok"
        reply = decode_reply(TRAIN, answer)
        assert isinstance(reply, TrainReply)
        assert set(reply.arrays) == {HEAD_CENTER}
        exact = replace(reply, arrays={HEAD_CENTER: reply.arrays[HEAD_CENTER] + 1})
        assert site.check(TRAIN, request, encode_reply(exact)) == "SEC-663"
        assert site.check(TRAIN, replace(request, round=1), answer) == "SEC-661"
        update = hospital.request(round=1, arrays=sent)
        assert site.check(TRAIN, update, site.answer(TRAIN, update)) == "ok"
        admitted = message(TRAIN, encode_request(TRAIN, request))
        assert check_request(admitted, site.approval, hospital.site, None, NOON).round == 0
