"""A real SuperLink behind the gateway: what Flower's pinned version has to keep, and who is let in."""

from __future__ import annotations

import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from datetime import UTC, date, datetime, timedelta

import httpx
import pytest
import yaml
from flwr.superlink.main import create_app

from fedethos.certificates import make_authority, make_node_key, make_server_certificate
from fedethos.client.node_key import load_node_key
from fedethos.flower_fleet import Endpoint, FleetConnection
from fedethos.flower_superlink import _ACTS_ON, superlink_app
from fedethos.flower_superlink_client import SuperLinkClient, bundle_of
from fedethos.server.places import RUN_KEY
from fedethos.server.registry import synchronise
from fedethos.server.server_app import BUNDLE
from fedethos.server.superlink import SuperLink, free_port
from fedethos.server_document import load_server
from fedethos.trial import make_trial
from fedethos.trust import load_trust

TODAY = date(2026, 6, 1)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """(folder of the trial, its server document, a SuperLink that is up)."""
    folder = tmp_path_factory.mktemp("superlink") / "trial"
    make_trial(folder, sites=["north", "south"], address=f"127.0.0.1:{free_port()}", hosts=())
    server = load_server(folder / "server" / "server.yaml")
    superlink = SuperLink(server)
    superlink.start()
    yield folder, server, superlink
    superlink.close()


def _register(running, trust=None, today=TODAY):
    _, server, superlink = running
    return synchronise(superlink, trust or load_trust(server.trust), today, server.state / "sites.json")


def _connect(folder, site, address, stop):
    endpoint = Endpoint(address, (folder / site / "ca.pem").read_bytes())
    with FleetConnection(endpoint, load_node_key(folder / site / "node.key"), stop) as connection:
        connection.receive(lambda: 1_000_000)
        return connection.node_id, connection.problem


@pytest.fixture
def stop():
    return threading.Event()


def test_a_registered_node_gets_the_id_that_the_coordinator_wrote_down(running, stop):
    folder, server, _ = running
    known = _register(running)
    assert _connect(folder, "north", server.document.address, stop) == (known["north"].node_id, None)


@pytest.mark.parametrize(("hours", "word"), [(-1.0, "behind"), (1.0, "ahead of")])
def test_a_node_whose_clock_is_off_is_refused_through_the_gateway_and_told_by_how_much(running, stop, monkeypatch, hours, word):
    folder, server, _ = running
    _register(running)
    real = datetime.now(UTC)
    monkeypatch.setattr("flwr.supernode.node_auth_http_interceptor.now", lambda: real + timedelta(hours=hours))
    monkeypatch.setattr("fedethos.flower_fleet_client.time.time", (real + timedelta(hours=hours)).timestamp)
    node_id, problem = _connect(folder, "north", server.document.address, stop)
    assert node_id is None and problem.code == "NET-544"
    told = re.search(rf"(\d+) s {word} the coordinator's", str(problem))
    assert told is not None and int(told[1]) == pytest.approx(3600, abs=60)


def test_a_node_that_is_stopped_does_not_wait_for_the_end_of_a_question_that_the_gateway_holds(running, stop):
    folder, server, _ = running
    _register(running)
    endpoint = Endpoint(server.document.address, (folder / "north" / "ca.pem").read_bytes())
    with FleetConnection(endpoint, load_node_key(folder / "north" / "node.key"), stop) as connection:
        threading.Timer(0.5, stop.set).start()
        while not stop.is_set():  # the first question may be answered at once
            assert connection.receive(lambda: 1_000_000) is None and connection.problem is None
        assert "question" in {thread.name for thread in threading.enumerate()}  # not answered yet


def test_registering_again_changes_nothing(running):
    assert _register(running) == _register(running)


def test_a_revoked_key_is_locked_out_and_its_site_can_come_back_with_another(running, stop):
    folder, server, _ = running
    before = _register(running)
    words = yaml.safe_load(server.trust.read_text())
    old = words["sites"]["south"]["public_key"]
    words |= {"revoked": [old]}
    server.trust.write_text(yaml.safe_dump(words))
    assert "south" not in _register(running)
    node_id, problem = _connect(folder, "south", server.document.address, stop)
    assert node_id is None and problem is not None

    private, public = make_node_key()
    (folder / "south" / "node.key").write_bytes(private)
    words["sites"]["south"]["public_key"] = public
    server.trust.write_text(yaml.safe_dump(words))
    after = _register(running)
    assert after["south"].node_id != before["south"].node_id and after["north"] == before["north"]
    assert _connect(folder, "south", server.document.address, stop) == (after["south"].node_id, None)


def test_a_key_outside_its_days_is_not_answered(running):
    _, server, _ = running
    trust = load_trust(server.trust)
    north = trust.sites["north"].model_copy(update={"valid_from": "2026-05-01", "valid_until": "2026-06-01"})
    trust = trust.model_copy(update={"sites": {**trust.sites, "north": north}})
    assert "north" in _register(running, trust, date(2026, 6, 1))
    for day in (date(2026, 6, 2), date(2026, 4, 30)):
        assert "north" not in _register(running, trust, day)
    assert _register(running)["north"] == _register(running, trust, date(2026, 6, 1))["north"]  # the same node as before


def test_nobody_without_the_secret_can_start_a_run_or_take_one_over(running):
    _, _, superlink = running
    stranger = SuperLinkClient(superlink.port, "a guess")
    try:
        for call in (stranger.nodes, stranger.runs, lambda: stranger.start_run(bundle_of(BUNDLE), {})):
            with pytest.raises(httpx.HTTPStatusError) as refusal:
                call()
            assert refusal.value.response.status_code == 401
        run = superlink.client.start_run(bundle_of(BUNDLE), {"run": "small-00000000"})
        with pytest.raises(httpx.HTTPStatusError):
            stranger.acquire()
        assert superlink.client.acquire()[0] == run
        superlink.client.stop_run(run)
    finally:
        stranger.close()


APP = """
import time
from flwr.serverapp import ServerApp

app = ServerApp()

@app.main()
def main(grid, context):
    try:
        print(context.run_config["run"], sorted(grid.get_node_ids()), flush=True)
        time.sleep({seconds})
    finally:
        print("closed", flush=True)
"""
RUN_IT = "import sys; from fedethos.flower_server_app import run_server_app; run_server_app(int(sys.argv[1]), sys.argv[2], 'own:app')"


@pytest.mark.parametrize(("seconds", "status"), [(0, (0, "completed")), (60, (128 + signal.SIGTERM, "failed"))])
def test_a_server_app_is_run_to_its_end_or_ended_where_it_is_and_the_superlink_knows(running, tmp_path, seconds, status):
    known, superlink = _register(running), running[2]
    (tmp_path / "own.py").write_text(APP.replace("{seconds}", str(seconds)))
    run = superlink.client.start_run(bundle_of(BUNDLE), {RUN_KEY: "small-00000000"})
    acquired, token = superlink.client.acquire()
    command = [sys.executable, "-c", RUN_IT, str(superlink.port), token]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}) as app:
        first = app.stdout.readline()
        assert (acquired, first) == (run, f"small-00000000 {_online(superlink)}\n") and len(known) == 2
        if seconds:
            app.terminate()
        assert app.stdout.readline() == "closed\n"
    assert (app.returncode, _state(superlink, run)) == (status[0], ("finished", status[1]))


def _online(superlink):
    return sorted(node.node_id for node in superlink.client.nodes() if node.online)


def _state(superlink, run):
    return next((one.status, one.sub_status) for one in superlink.client.runs() if one.run_id == run)


def test_the_bundle_holds_a_name_and_no_code():
    import io
    import zipfile

    names = zipfile.ZipFile(io.BytesIO(bundle_of(BUNDLE))).namelist()
    assert sorted(names) == [".info/CONTENT", "pyproject.toml"]


@pytest.mark.parametrize("days_ago", [3, 400])
def test_an_expired_certificate_is_refused_by_the_node(tmp_path, days_ago, stop):
    """A coordinator whose certificate ran out: no site talks to it."""
    folder = tmp_path / "trial"
    make_trial(folder, sites=["north"], address=f"127.0.0.1:{free_port()}", hosts=())
    server = load_server(folder / "server" / "server.yaml")
    authority = make_authority("another day", days=1000.0)
    start = datetime.now(UTC) - timedelta(days=days_ago)
    certificate, key = make_server_certificate(authority, ["127.0.0.1"], days=1.0, start=start)
    server.certificate.write_bytes(certificate)
    server.key.write_bytes(key)
    (folder / "north" / "ca.pem").write_bytes(authority.pem)
    superlink = SuperLink(server)
    superlink.start()
    try:
        synchronise(superlink, load_trust(server.trust), TODAY, server.state / "sites.json")
        node_id, problem = _connect(folder, "north", server.document.address, stop)
        assert node_id is None and problem.code == "NET-542"
    finally:
        superlink.close()


def test_a_site_with_another_ca_does_not_talk_to_it(running, tmp_path, stop):
    _, server, _ = running
    context = ssl.create_default_context(cadata=make_authority("a stranger", days=1.0).pem.decode())
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"https://{server.document.address}/health", verify=context)


def test_flower_s_own_count_of_bytes_is_off(tmp_path):
    """Where it is on, a run that is not there is a ValueError."""
    state = superlink_app(str(tmp_path / "superlink.sqlite"), "secret", 1).state.linkstate_factory.state()
    assert state.store_traffic(7, bytes_sent=1, bytes_recv=0) is None


def test_flower_has_the_middleware_that_is_kept_off_other_paths(tmp_path):
    """What is not named there acts on every path."""
    names = [one.cls.__name__ for one in superlink_app(str(tmp_path / "superlink.sqlite"), "secret", 1).user_middleware]  # as wrapped here
    flowers = [one.cls.__name__ for one in create_app().user_middleware]
    assert len(names) == len(flowers) and names.count("_OnPath") == 7
    assert {name for name in flowers if name.startswith(tuple(_ACTS_ON))} == {
        "ControlSensitiveResponseMiddleware",
        "ControlAuthenticationMiddleware",
        "ControlLicenseMiddleware",
        "ControlEventLogMiddleware",
        "RuntimeTracingMiddleware",
        "NodeAuthMiddleware",
        "FleetEventLogMiddleware",
    }
