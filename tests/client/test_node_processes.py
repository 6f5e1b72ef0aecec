"""What the node's two processes are made of: frames between them, the inbox on disk, the device of the worker."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedethos.client.devices import use_device, visible_to_worker
from fedethos.client.frames import BrokenConnectionError, Order, receive_record, send_record
from fedethos.client.inbox import Inbox
from fedethos.client.worker_handle import WorkerDiedError, WorkerHandle
from fedethos.errors import FedethosError
from fedethos.flower import identify_process, with_message_id
from fedethos.site import SiteDocument

ORDER = Order(job="{}", run="small-0123abcd", message_type="train")


def record(size: int = 6) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(np.arange(size, dtype=np.float32))}), "config": ConfigRecord({"round": 3})})


def same(one: RecordDict, other: RecordDict) -> bool:
    return one.object_id == other.object_id


def message(content: RecordDict) -> Message:
    identify_process(run_id=5)
    return with_message_id(Message(content, 7, "train", group_id="3"), "m-1")


@pytest.fixture
def pair() -> tuple[Connection, Connection]:
    ours, theirs = socket.socketpair()
    return Connection(ours.detach()), Connection(theirs.detach())


def test_a_record_goes_to_the_worker_and_back(pair) -> None:
    ours, theirs = pair
    sender = threading.Thread(target=send_record, args=(ours, record(3_000_000), ORDER))  # more than a socket's buffer
    sender.start()
    received, order = receive_record(theirs)
    sender.join()
    assert same(received, record(3_000_000)) and order == ORDER
    send_record(theirs, record())
    received, order = receive_record(ours)
    assert same(received, record()) and order is None


@given(st.lists(st.binary(max_size=200), max_size=4))
def test_whatever_else_comes_is_a_broken_connection(frames: list[bytes]) -> None:
    a, b = socket.socketpair()
    ours, theirs = Connection(a.detach()), Connection(b.detach())
    for frame in frames:
        ours.send_bytes(frame)
    ours.close()
    with pytest.raises(BrokenConnectionError):
        receive_record(theirs)
    theirs.close()


def test_a_pickle_is_not_opened(pair, tmp_path) -> None:
    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    pair[0].send(Bomb())
    with pytest.raises(BrokenConnectionError):
        receive_record(pair[1])
    assert not (tmp_path / "ran").exists()


def test_the_inbox_gives_back_what_a_killed_node_was_working_on(tmp_path) -> None:
    inbox = Inbox(tmp_path / "inbox")
    assert inbox.kept() is None
    inbox.keep(message(record()))
    kept = Inbox(tmp_path / "inbox").kept()
    assert kept is not None and same(kept.message.content, record()) and not kept.checked and kept.reply is None
    metadata = kept.message.metadata
    assert (metadata.message_id, metadata.run_id, metadata.message_type, metadata.group_id) == ("m-1", 5, "train", "3")
    inbox.mark_checked()
    inbox.keep_reply(record(4))
    kept = inbox.kept()
    assert kept is not None and kept.checked and kept.reply is not None and same(kept.reply, record(4))
    inbox.keep(message(record(9)))  # the next one has nothing of the last
    kept = inbox.kept()
    assert kept is not None and not kept.checked and kept.reply is None and same(kept.message.content, record(9))
    inbox.clear()
    assert inbox.kept() is None


@pytest.mark.parametrize("cut", [0, 5, 40, 300])
def test_half_a_message_is_none(tmp_path, cut: int) -> None:
    inbox = Inbox(tmp_path)
    inbox.keep(message(record(1_000)))
    whole = (tmp_path / "request").read_bytes()
    (tmp_path / "request").write_bytes(whole[:cut])
    assert inbox.kept() is None
    (tmp_path / "request").write_bytes(whole + b"x")
    assert inbox.kept() is None


def test_a_message_that_came_without_content_can_be_kept(tmp_path) -> None:
    from fedethos.flower import unreadable

    inbox = Inbox(tmp_path)
    inbox.keep(unreadable(message(record())))
    kept = inbox.kept()
    assert kept is not None and not kept.message.has_content() and kept.message.metadata.message_id == "m-1"


@pytest.mark.parametrize(
    ("device", "environment", "visible"),
    [
        ("auto", {}, None),
        ("auto", {"CUDA_VISIBLE_DEVICES": "2"}, "2"),
        ("cpu", {"CUDA_VISIBLE_DEVICES": "2"}, ""),
        ("cuda:1", {}, "1"),
        ("cuda:1", {"CUDA_VISIBLE_DEVICES": "4,6"}, "6"),
        ("cuda:2", {"CUDA_VISIBLE_DEVICES": "4,6"}, ""),
        ("cuda:0", {"CUDA_VISIBLE_DEVICES": ""}, ""),
    ],
)
def test_the_worker_sees_its_device_alone(device: str, environment: dict[str, str], visible: str | None) -> None:
    assert visible_to_worker(device, environment).get("CUDA_VISIBLE_DEVICES") == visible


def site(**changes: object) -> SiteDocument:
    caps = {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0}
    document = {"account": "people", "data": {"path": "x.csv"}, "caps": caps, "split_salt": "0123456789abcdef", **changes}
    return SiteDocument.model_validate(document)


def test_a_gpu_that_is_not_there_is_refused_and_not_replaced_by_the_cpu(monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(FedethosError, match="NODE-542"):
        use_device(site(device="cuda:0"))
    use_device(site(device="auto"))


def test_the_memory_cap_holds_in_the_worker() -> None:
    script = """
import sys, torch
from fedethos.client.devices import use_device
from fedethos.client.memory import is_out_of_memory
from tests.client.test_node_processes import site
use_device(site(device="cpu", memory_gb=3.0))
torch.empty(2**20)
try:
    torch.ones(2**30)
except Exception as failure:
    sys.exit(0 if is_out_of_memory(failure) else 3)
sys.exit(4)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode == 0


def test_a_worker_that_dies_is_noticed_and_the_next_order_starts_another(tmp_path, monkeypatch) -> None:
    """The worker is replaced by a few lines that answer with what they got, or end themselves."""
    program = tmp_path / "worker.py"
    program.write_text(
        "import os, signal, sys\n"
        "from multiprocessing.connection import Connection\n"
        "from fedethos.client.frames import receive_record, send_record\n"
        "line = Connection(int(sys.argv[2]))\n"
        "while True:\n"
        "    record, order = receive_record(line)\n"
        "    if order.run == 'die':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    send_record(line, record)\n"
    )
    real = subprocess.Popen

    def started(command, **options):
        assert command[1:3] == ["-m", "fedethos.client.worker"]
        return real([command[0], str(program), *command[3:]], **options)

    monkeypatch.setattr("fedethos.client.worker_handle.subprocess.Popen", started)
    with WorkerHandle(tmp_path / "site.yaml", "cpu", tmp_path / "errors") as worker:
        assert worker.pid is None
        assert same(worker.ask(ORDER, record()), record())
        first = worker.pid
        with pytest.raises(WorkerDiedError) as death:
            worker.ask(ORDER.model_copy(update={"run": "die"}), record())
        assert death.value.status == -signal.SIGKILL and worker.pid is None
        assert same(worker.ask(ORDER, record(9)), record(9)) and worker.pid != first
        assert (tmp_path / "errors").stat().st_mode & 0o777 == 0o600
        last = worker.pid
    assert not Path(f"/proc/{last}").exists()


def test_the_supervisor_brings_no_deep_learning_library() -> None:
    script = "import json, sys; import fedethos.client.supervisor; print(json.dumps(sorted(sys.modules)))"
    loaded = set(json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout))
    assert not loaded & {"torch", "transformers", "peft", "opacus", "pandas", "dp_accounting", "matplotlib"}
