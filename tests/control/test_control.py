"""The control socket with real gRPC: who may open it, what goes over it, what an error looks like on the other side."""

import socket as sockets
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.control.calling import call_control, is_healthy
from fedethos.control.serving import ControlServer, Method, serve_control
from fedethos.control.wire import SERVICE, JsonObject, from_struct, to_struct
from fedethos.errors import FedethosError

CANARY = "patient=JANE DOE mrn=12345"


def refuse(_: JsonObject) -> JsonObject:
    raise FedethosError("PRIV-310", "The budget would be exceeded.", where="site", why="Nothing was sent.", fix="Ask.")


def fail(_: JsonObject) -> JsonObject:
    raise ValueError(f"could not convert string to float: '{CANARY}'")


METHODS: Mapping[str, Method] = {"status": lambda argument: {"heard": argument}, "pause": refuse, "resume": fail}


@pytest.fixture
def socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "control.sock"


@pytest.fixture
def server(socket: Path) -> Iterator[ControlServer]:
    with serve_control(socket, METHODS, "node") as running:
        yield running


def refusal(socket: Path, method: str) -> FedethosError:
    with pytest.raises(FedethosError) as caught:
        call_control(socket, method, {})
    return caught.value


def test_a_call_brings_a_json_object_there_and_back(server: ControlServer, socket: Path) -> None:
    said: JsonObject = {"round": 3, "epsilon": 1.5, "late": ["a", "b"], "sites": {"a": {"state": "sent"}}, "paused": False, "until": None}
    assert call_control(socket, "status", said) == {"heard": said}


def test_only_the_owner_can_open_the_socket(server: ControlServer, socket: Path) -> None:
    assert stat.S_ISSOCK(socket.stat().st_mode)
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert [path.name for path in sorted(socket.parent.iterdir())] == ["control.sock", "control.sock.lock"]


def test_nothing_listens_on_the_network(server: ControlServer) -> None:
    listening = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    inodes = {line.split()[9] for lines in listening for line in lines if line.split()[3] == "0A"}
    own = {
        path.readlink().name for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.readlink().name.startswith("socket:")
    }
    assert not inodes & {name.removeprefix("socket:[").removesuffix("]") for name in own}


def test_a_refusal_arrives_whole(server: ControlServer, socket: Path) -> None:
    error = refusal(socket, "pause")
    assert (error.code, error.what, error.where) == ("PRIV-310", "The budget would be exceeded.", "site")
    assert (error.why, error.fix) == ("Nothing was sent.", "Ask.")


def test_of_an_unexpected_failure_only_an_incident_id_arrives(server: ControlServer, socket: Path, tmp_path: Path) -> None:
    error = refusal(socket, "resume")
    assert error.code == "NET-525"
    assert CANARY not in str(error)
    (detail,) = (tmp_path / "xdg/fedethos/incidents").iterdir()
    assert detail.stem in str(error)
    assert CANARY in detail.read_text()
    with grpc.insecure_channel(f"unix:{socket}") as channel, pytest.raises(grpc.RpcError) as raw:
        channel.unary_unary(f"/{SERVICE}/Resume", request_serializer=to_struct, response_deserializer=from_struct)({})
    assert CANARY not in repr(raw.value)


def test_a_method_that_is_not_there_is_named_so(server: ControlServer, socket: Path) -> None:
    assert refusal(socket, "submit").code == "NET-522"


def test_without_a_process_the_error_says_that_it_does_not_run(socket: Path) -> None:
    assert refusal(socket, "status").code == "NET-520"


def test_a_socket_that_a_killed_process_left_is_no_process_and_is_replaced(socket: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(socket))
    assert refusal(socket, "status").code == "NET-520"
    with serve_control(socket, METHODS, "node"):
        assert call_control(socket, "status", {}) == {"heard": {}}
    assert not socket.exists()


def test_a_second_process_with_the_same_state_is_refused(server: ControlServer, socket: Path) -> None:
    with pytest.raises(FedethosError, match="NET-521"):
        serve_control(socket, METHODS, "node")
    assert call_control(socket, "status", {}) == {"heard": {}}


def test_a_killed_process_leaves_nothing_that_blocks_the_next(socket: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from fedethos.control.serving import serve_control;"
        "server = serve_control(Path(sys.argv[1]), {'status': lambda _: {'pid': os.getpid()}}, 'node');"
        "print('up', flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(socket)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert call_control(socket, "status", {}) == {"pid": process.pid}
        process.kill()
    with serve_control(socket, METHODS, "node"):
        assert call_control(socket, "status", {}) == {"heard": {}}


def test_a_path_that_no_socket_can_have_is_refused(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    with pytest.raises(FedethosError, match="NET-523"):
        serve_control(long / "control.sock", METHODS, "node")
    assert [path.name for path in long.iterdir()] == ["control.sock.lock"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="NET-523"):
        serve_control(tmp_path / "missing" / "control.sock", METHODS, "node")


def test_a_process_that_hangs_is_not_waited_for(socket: Path) -> None:
    release = threading.Event()

    def hang(_: JsonObject) -> JsonObject:
        release.wait(5.0)
        return {}

    with serve_control(socket, {"status": hang}, "node"):
        with pytest.raises(FedethosError, match="NET-524"):
            call_control(socket, "status", {}, timeout=0.2)
        release.set()


def test_health_is_the_standard_service(server: ControlServer, socket: Path) -> None:
    def standard(service: str) -> object:
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service)).status

    assert (is_healthy(socket), is_healthy(socket, "node")) == (True, False)  # alive, not ready yet
    server.set_serving()
    assert is_healthy(socket, "node")
    assert standard("node") == standard("") == health_pb2.HealthCheckResponse.SERVING
    server.set_not_serving()
    assert (is_healthy(socket), is_healthy(socket, "node"), is_healthy(socket, "coordinator")) == (True, False, False)


def test_the_probe_is_a_command_for_health_checks(server: ControlServer, socket: Path) -> None:
    def probe(*arguments: str) -> tuple[int, bytes]:
        done = subprocess.run([sys.executable, "-m", "fedethos.control.probe", *arguments], capture_output=True, check=False)
        return done.returncode, done.stdout

    assert probe(str(socket)) == (0, b"")
    assert probe(str(socket), "node") == (1, b"")
    assert probe(str(socket.with_name("none.sock"))) == (1, b"")
    assert probe()[0] == 2


def test_probes_and_calls_import_nothing_heavy() -> None:
    code = (
        "import sys, fedethos.control.serving, fedethos.control.probe; print([m for m in ('torch', 'flwr', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_every_json_object_survives_the_wire(value: dict[str, object]) -> None:
    assert from_struct(to_struct(value)) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [2**53 + 1, float("nan"), float("inf")])
def test_a_number_that_would_change_on_the_wire_is_refused(number: float) -> None:
    with pytest.raises(ValueError):
        to_struct({"list": [{"number": number}]})


def test_the_proto_file_says_what_is_served() -> None:
    from fedethos.control import wire

    text = (Path(wire.__file__).parent / "control.proto").read_text("utf-8")
    assert "package fedethos.control.v1;" in text and "service Control" in text
    assert {f"rpc {wire.rpc_name(method)}(google.protobuf.Struct)" in text for method in wire.METHODS} == {True}
    assert Struct.DESCRIPTOR.full_name == "google.protobuf.Struct"
