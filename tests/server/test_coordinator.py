"""The queue, the names of runs, what a job needs to be deployed, the notification hook, and the checks of `server doctor`."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import httpx
import pytest

from fedethos import flower_grid
from fedethos.certificates import make_authority, make_server_certificate
from fedethos.cli import run as fedethos
from fedethos.client.registry import prepare_task
from fedethos.errors import FedethosError
from fedethos.flower import identify_process
from fedethos.job import Job
from fedethos.runfolder import RunFolder
from fedethos.server import coordinator as module
from fedethos.server.coordinator import Coordinator
from fedethos.server.deployment import run_deployed
from fedethos.server.doctor import examine
from fedethos.server.live import LiveFile, Problem, read_live
from fedethos.server.notify import Notifier
from fedethos.server.places import STATE_VARIABLE, Places, new_run_name
from fedethos.server.queue import Queue, Status
from fedethos.server.site import deployed_sites
from fedethos.server_document import load_server


def job(**federation: object) -> Job:
    sites = {"north": {"declared_size": 300}, "south": {"declared_size": 100, "weight": 3.0}}
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "small",
            "task": "tabular-classification",
            "model": {"path": "builtin:linear"},
            "data": {
                "path": "x.csv",
                "features": {"age": {"low": 0, "high": 99}},
                "label": {"column": "y", "values": ["a", "b"], "favorable": "b"},
            },
            "federation": {"min_sites": 2, "sites": sites, **federation},
        }
    )


@pytest.fixture
def places(tmp_path):
    made = Places(tmp_path / "state")
    made.make()
    return made


@pytest.mark.parametrize(("failure", "ended"), [(httpx.ReadError("gone"), False), (KeyError("x"), True)])
def test_a_lost_superlink_does_not_end_a_run_and_a_bug_does(places, tmp_path, monkeypatch, failure, ended):
    """What the live file calls ended is not started again."""
    entry = Queue(places).submit(job(), tmp_path)
    places.sites.write_text(json.dumps({"north": 1, "south": 2}), "utf-8")
    identify_process(run_id=1)
    grid = flower_grid.HttpGrid(token="never used")
    monkeypatch.setenv(STATE_VARIABLE, str(places.state))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(grid, "push_messages", lambda messages: (_ for _ in ()).throw(failure))
    monkeypatch.setattr(grid, "get_nodes", lambda: [])
    with pytest.raises(FedethosError, match="RUN-973" if ended else "NET-518"):
        run_deployed(grid, prepare_task, run=entry.run, job_sha256=entry.job_sha256, attempt=0, quarantine_after=None)
    assert read_live(places.live(entry.run)).ended is ended


def test_a_submitted_job_survives_a_restart_in_its_order(places, tmp_path):
    queue = Queue(places)
    runs = [queue.submit(job(), tmp_path).run for _ in range(3)]
    first = queue.get(runs[0])
    first.status = Status.COMPLETED
    queue.save(first)
    again = Queue(places)
    assert [entry.run for entry in again.entries()] == runs
    assert again.next().run == runs[1]
    folder = RunFolder(places.run(runs[1]))
    assert folder.parse_job().sha256 == job().sha256 == again.get(runs[1]).job_sha256
    assert folder.read_local().run == runs[1]


@pytest.mark.parametrize(
    ("federation", "code"),
    [
        ({"sites": {}}, "CFG-376"),
        ({"sites": {"north": {"declared_size": 300}, "south": {}}}, "CFG-376"),
        ({"min_sites": 3}, "CFG-378"),
    ],
)
def test_a_job_that_does_not_say_who_takes_part_is_refused(places, tmp_path, federation, code):
    with pytest.raises(FedethosError) as refusal:
        Queue(places).submit(job(**federation), tmp_path)
    assert refusal.value.code == code and not list(places.queue.iterdir())


@pytest.mark.parametrize("name", ["../../etc", "small", "small-0123456", "a/b-01234567", "", ".-01234567", "small-01234567/.."])
def test_no_path_comes_out_of_a_name(places, name):
    for place in (places.run, places.live):
        with pytest.raises(FedethosError, match="RUN-971"):
            place(name)


def test_names_of_runs_are_new_and_are_names():
    names = {new_run_name("adult-income") for _ in range(100)}
    assert len(names) == 100 and all(Places.run.__get__(Places(__import__("pathlib").Path("s")))(name) for name in names)


def test_sites_have_the_jobs_weights_under_its_cap_and_need_a_key():
    sites = deployed_sites(job(min_sites=1), {"north": 11, "south": 22, "stranger": 33})
    assert {node: (site.name, site.share, site.declared_size) for node, site in sites.items()} == {
        11: ("north", 0.5, 300),
        22: ("south", 0.5, 100),  # three quarters by weight, capped at a half
    }
    with pytest.raises(FedethosError, match="south") as refusal:
        deployed_sites(job(), {"north": 11})
    assert refusal.value.code == "CFG-377"


def test_the_hook_gets_each_event_in_order_and_a_broken_one_disturbs_nobody(tmp_path):
    heard = tmp_path / "heard"
    command = [sys.executable, "-c", f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read())"]
    notifier = Notifier(command)
    notifier.tell("run-started", {"run": "small-01234567"})
    notifier.tell("run-completed", {"run": "small-01234567"})
    notifier.close()
    assert [json.loads(line)["event"] for line in heard.read_text().splitlines()] == ["run-started", "run-completed"]
    for broken in (None, ["/nowhere/at/all"], [sys.executable, "-c", "raise SystemExit(3)"]):
        silent = Notifier(broken)
        silent.tell("run-started", {})
        silent.close()


@pytest.fixture
def server(tmp_path):
    from fedethos.server.superlink import free_port

    assert fedethos(["keys", "trial", str(tmp_path / "t"), "--site", "north", "--address", f"127.0.0.1:{free_port()}"]) == 0
    return load_server(tmp_path / "t" / "server" / "server.yaml")


def wrong(server, now=None):
    return [finding.check for finding in examine(server, now) if finding.ok is False]


def test_the_doctor_finds_nothing_wrong_with_a_trial(server):
    assert wrong(server) == []


def test_the_doctor_finds_an_expired_certificate(server):
    assert wrong(server, datetime.now(UTC) + timedelta(days=40)) == ["certificate"]


def test_the_doctor_finds_a_certificate_without_names_or_of_another_key(server):
    certificate, key = make_server_certificate(make_authority("x", days=1.0), ["127.0.0.1"], days=1.0)
    server.certificate.write_bytes(certificate)
    assert wrong(server) == ["private key"]
    server.key.write_bytes(key)
    assert wrong(server) == []


def test_the_doctor_finds_a_readable_key_a_bad_trust_and_a_taken_port(server):
    import socket

    server.key.chmod(0o644)
    server.trust.write_text("schema: fedethos/trust/v1\nsites: {north: {public_key: nonsense}}\n")
    with socket.create_server(server.address):
        assert wrong(server) == ["private key", "trust.yaml", "address"]


def test_the_doctor_finds_a_damaged_database(server):
    database = server.state / "superlink" / "superlink.sqlite"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    assert wrong(server) == ["database"]


def test_the_doctors_exit_code_says_that_something_has_to_be_mended(server, capsys):
    path = str(server.folder / "server.yaml")
    assert fedethos(["server", "doctor", "--server", path]) == 0
    server.key.chmod(0o644)
    assert fedethos(["server", "doctor", "--server", path]) == 8
    assert "chmod 600" in capsys.readouterr().out


@pytest.mark.parametrize("verb", [["status"], ["pause"], ["resume"], ["stop"]])
def test_without_a_coordinator_the_verbs_say_so(server, verb, capsys):
    assert fedethos(["server", *verb, "--server", str(server.folder / "server.yaml")]) == 8
    assert "NET-520" in capsys.readouterr().err


def test_a_full_disk_is_said_once_and_nothing_is_started_on_it(server, tmp_path, monkeypatch):
    heard = tmp_path / "heard"
    command = [sys.executable, "-c", f"import sys; open({str(heard)!r}, 'a').write(sys.stdin.read())"]
    coordinator = Coordinator(
        replace(server, document=server.document.model_copy(update={"notify": command})), finished=lambda folder: None
    )
    started: list[str] = []
    free = [0]
    monkeypatch.setattr("fedethos.server.coordinator.shutil.disk_usage", lambda path: SimpleNamespace(free=free[0]))
    for method in ("_keep_superlink", "_register", "_look_at_sites"):
        monkeypatch.setattr(coordinator, method, lambda: None)
    monkeypatch.setattr(coordinator._app, "start", lambda run, *_, **__: started.append(run) or 1)
    coordinator._queue.submit(job(min_sites=1), tmp_path)
    coordinator._online = {"north": True}
    for _ in range(3):
        coordinator.tick()
    assert started == [] and coordinator.status({})["disk_full"] is True
    free[0] = 1 << 30
    coordinator.tick()
    assert len(started) == 1 and coordinator.status({})["disk_full"] is False
    coordinator._notifier.close()
    assert [json.loads(line)["event"] for line in heard.read_text().splitlines()].count("disk-full") == 1


def test_a_missed_quorum_is_tried_again_ever_more_seldom(server, tmp_path, monkeypatch):
    """Sites that have not approved the job yet may take days: the ServerApp does not start every few seconds until then."""
    started, clock = [], [1000.0]
    coordinator = Coordinator(server, finished=lambda folder: None)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0], time=lambda: clock[0]))
    for method in ("_keep_superlink", "_register", "_look_at_sites"):
        monkeypatch.setattr(coordinator, method, lambda: None)

    def start(run, *_, **__):
        started.append(clock[0])
        LiveFile(coordinator.places.live(run), rounds=3, deadline=9.0).end(Problem(code="AGG-710", what="Few came.", why="Why."))
        return 1

    coordinator._app = SimpleNamespace(start=start, stop=lambda: None, alive=False)
    coordinator._queue.submit(job(min_sites=1), tmp_path)
    coordinator._online = {"north": True}
    for _ in range(800):
        coordinator.tick()
        clock[0] += 0.5
    coordinator._notifier.close()
    gaps = [round(after - before) for before, after in itertools.pairwise(started)]
    assert gaps[:4] == pytest.approx([5, 10, 20, 40], abs=1)
    assert set(gaps[4:]) <= {60, 61} and len(gaps) > 6
    assert coordinator.status({})["runs"][0]["problem"]["why"] == "Why.", "also while it is tried again"
