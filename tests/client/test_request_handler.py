"""From a message to what may be sent: what is paid, what is asked of the worker, what a failure says. The worker runs in this process."""

import logging

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from tests.client.conftest import Hospital, message

from fedethos.client import approvals
from fedethos.client.frames import Order
from fedethos.client.request_handler import Answer, RequestHandler
from fedethos.client.worker import Worker
from fedethos.client.worker_handle import WorkerDiedError
from fedethos.flower import unreadable
from fedethos.messages import SETUP, ErrorReply, Request, SetupReply, TrainReply, decode_reply, encode_reply, encode_request
from fedethos.privacy.ledger import read_ledger


class WorkerHere:
    """Stands for ``WorkerHandle``. ``deaths``: how often it dies first. ``paid``: plans in the ledger when it was asked."""

    def __init__(self, hospital: Hospital, deaths: int = 0) -> None:
        self.hospital, self.deaths = hospital, deaths
        self.worker = Worker(hospital.site, hospital.folder)
        self.paid: list[int] = []
        self.asked: list[str] = []
        self.pid: int | None = None
        self.change = lambda reply: reply

    def ask(self, order: Order, record: RecordDict) -> RecordDict:
        self.paid.append(len(plans(self.hospital)))
        self.asked.append(order.message_type)
        self.pid = 1
        if self.deaths and order.message_type != SETUP:
            self.deaths -= 1
            self.pid = None
            raise WorkerDiedError(-9)
        return self.change(self.worker.answer(order, record))


def plans(hospital: Hospital) -> dict:
    path = hospital.folder / hospital.site.ledger
    return read_ledger(path)[0].plans if path.exists() else {}


def answered(hospital: Hospital, asked, worker: WorkerHere, **options) -> Answer:
    checked: list[Request] = []
    with RequestHandler(hospital.site, hospital.folder, worker) as handler:
        answer = handler.answer(asked, **{"known": False, "kept": None, "on_checked": checked.append, **options})
    assert checked == ([] if answer.request is None else [answer.request])
    return answer


def test_the_plan_is_paid_before_the_worker_is_asked_and_setup_pays_nothing(hospital: Hospital) -> None:
    worker = WorkerHere(hospital)
    setup = answered(hospital, message(SETUP, encode_request(SETUP, hospital.request(round=0, arrays={})), "m0"), worker)
    assert isinstance(decode_reply(SETUP, setup.reply), SetupReply) and plans(hospital) == {}
    update = answered(hospital, hospital.train(), worker)
    assert update.code is None and isinstance(decode_reply("train", update.reply), TrainReply)
    assert worker.paid == [0, 1]


def test_a_plan_over_the_cap_is_refused_at_setup_and_nobody_is_asked(open_hospital) -> None:
    hospital = open_hospital(site={"caps": {"lifetime_epsilon": 1.0, "per_job_epsilon": 1.0}})
    hospital.approve()
    worker = WorkerHere(hospital)
    setup = answered(hospital, message(SETUP, encode_request(SETUP, hospital.request(round=0, arrays={})), "m0"), worker)
    train = answered(hospital, hospital.train(), worker)
    assert (setup.code, train.code) == ("PRIV-310", "PRIV-310") and worker.paid == [] and plans(hospital) == {}


def test_a_stored_reply_needs_no_worker(hospital: Hospital) -> None:
    first = answered(hospital, hospital.train(), WorkerHere(hospital))
    idle = WorkerHere(hospital)
    again = answered(hospital, hospital.train(message_id="m2", attempt=1), idle)
    assert again.reply.object_id == first.reply.object_id and idle.paid == []
    counts = answered(hospital, hospital.evaluate(message_id="m3"), WorkerHere(hospital))
    repeated = answered(hospital, hospital.evaluate(message_id="m4"), idle)
    assert counts.code is None and repeated.reply.object_id == counts.reply.object_id and idle.paid == []


def test_a_worker_that_dies_once_is_asked_again_and_twice_is_an_error(hospital: Hospital) -> None:
    worker = WorkerHere(hospital, deaths=1)
    assert answered(hospital, hospital.train(), worker).code is None and worker.paid == [1, 1]
    worker = WorkerHere(hospital, deaths=2)
    refusal = answered(hospital, hospital.train(message_id="m2", round=2), worker)
    assert refusal.code == "NODE-543" and isinstance(decode_reply("train", refusal.reply), ErrorReply)


def test_a_worker_that_was_started_in_the_middle_of_a_run_is_set_up_first(hospital: Hospital) -> None:
    """The frozen tensors travel once; a fresh worker would not have them."""
    worker = WorkerHere(hospital, deaths=1)
    setup = message(SETUP, encode_request(SETUP, hospital.request(round=0, arrays={})), "m0")
    with RequestHandler(hospital.site, hospital.folder, worker) as handler:
        for asked in (setup, hospital.train()):
            assert handler.answer(asked, known=False, kept=None, on_checked=lambda request: None).code is None
    assert worker.asked == [SETUP, "train", SETUP, "train"]


def test_a_reply_that_was_kept_is_checked_like_any_other(hospital: Hospital) -> None:
    worker = WorkerHere(hospital)
    update = answered(hospital, hospital.train(), worker)
    kept = answered(hospital, hospital.train(), WorkerHere(hospital), known=True, kept=update.reply)
    assert kept.code is None and kept.reply.object_id == update.reply.object_id
    decoded = decode_reply("train", update.reply)
    forged = encode_reply(TrainReply(**{**vars(decoded), "arrays": {name: array + 1 for name, array in decoded.arrays.items()}}))
    held_back = answered(hospital, hospital.train(round=2, message_id="m2"), WorkerHere(hospital), known=True, kept=forged)
    assert held_back.code == "SEC-663"


def test_what_a_broken_worker_gives_is_held_back(hospital: Hospital) -> None:
    """An update without noise, straight from the worker: not what the ledger recorded."""
    worker = WorkerHere(hospital)

    def denoised(reply: RecordDict) -> RecordDict:
        decoded = decode_reply("train", reply)
        return encode_reply(TrainReply(**{**vars(decoded), "arrays": hospital.arrays}))

    worker.change = denoised
    assert answered(hospital, hospital.train(), worker).code == "SEC-663"
    worker.change = lambda reply: RecordDict({**reply, "more": ArrayRecord({})})
    assert answered(hospital, hospital.train(message_id="m2", round=2), worker).code == "SEC-660"


def test_a_message_without_content_and_one_of_an_unknown_job(hospital: Hospital, caplog) -> None:
    worker = WorkerHere(hospital)
    assert answered(hospital, unreadable(hospital.train()), worker).code == "SEC-633"
    with caplog.at_level(logging.ERROR, logger="fedethos.incidents"):
        refusal = answered(hospital, hospital.train(job_sha256="0" * 64), worker)
    assert refusal.code == "SEC-611" and refusal.request is None and worker.paid == []
    assert str(refusal.reply.config_records["error"]["incident"]) in caplog.text  # the detail stays in the site's own log


def test_any_failure_becomes_a_code(hospital: Hospital, monkeypatch) -> None:
    def fails(*args: object) -> None:
        raise KeyError("patient=JANE DOE")

    monkeypatch.setattr("fedethos.client.request_handler.spending_plan", fails)
    refusal = answered(hospital, hospital.train(), WorkerHere(hospital))
    assert refusal.code == "NODE-500" and set(refusal.reply) == {"error"}


def test_reading_stops_at_the_largest_request_of_an_approved_job(open_hospital) -> None:
    hospital = open_hospital()
    with RequestHandler(hospital.site, hospital.folder, WorkerHere(hospital)) as handler:
        assert handler.most_bytes() == 2**20  # nothing is approved
        hospital.approve()
        enough = handler.most_bytes()
        assert enough >= sum(array.nbytes for array in hospital.arrays.values())
        approval = next((hospital.state / "approvals").glob("*.json"))
        approval.write_text(approval.read_text().replace("hospital-a", "hospital-b"))
        assert handler.most_bytes() == 2**20


def test_the_code_is_read_once_however_many_jobs_are_approved(open_hospital, monkeypatch) -> None:
    for rounds in (2, 3, 4):
        hospital = open_hospital(job={"federation": {"rounds": rounds}})
        hospital.approve()
    read, now = [], approvals.code_sha256()
    monkeypatch.setattr(approvals, "code_sha256", lambda: read.append(now) or now)
    assert len(approvals.approvals_that_hold(hospital.state, hospital.folder / hospital.site.key, hospital.site)) == 3
    assert len(read) == 1


def test_the_node_opened_by_a_worker_uses_the_operating_systems_noise(hospital: Hospital) -> None:
    """Two workers that train the same round of a run from the same adapter: other samples and other noise."""
    updates = []
    for number in range(2):
        (hospital.folder / "ledger.sqlite").unlink(missing_ok=True)
        (hospital.folder / "ledger.sqlite.head").unlink(missing_ok=True)
        answer = answered(hospital, hospital.train(message_id=f"m{number}"), WorkerHere(hospital))
        updates.append(decode_reply("train", answer.reply).arrays["layers.0.weight"])
    assert not np.array_equal(*updates)
