"""The image and docker/compose.yaml: a job through three sites and a coordinator, one site and the coordinator killed on the way."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fedethos.client import egress
from fedethos.privacy.ledger import read_ledger

ROOT = Path(__file__).parents[2]
IMAGE = os.environ.get("FEDETHOS_IMAGE", "fedethos:latest")
SITES = ("site-1", "site-2", "site-3")
_PATIENCE = 900.0  # seconds; on a busy machine a start takes a minute

pytestmark = pytest.mark.skipif(
    os.environ.get("FEDETHOS_DOCKER") != "1", reason="needs a Docker engine and the image: make test-docker runs it"
)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("docker") / "trial"
    compose = shutil.which("docker-compose")
    assert compose is not None, "docker-compose is not installed"
    environment = {**os.environ, "FEDETHOS_TRIAL": str(folder), "FEDETHOS_IMAGE": IMAGE, "COMPOSE_PROJECT_NAME": "fedethos-test"}
    for parent in [folder.parent, *folder.parent.parents][:3]:
        parent.chmod(0o755)  # pytest's folders are private, and the containers run as another user
    subprocess.run([ROOT / "docker" / "trial.sh", folder], env=environment, check=True, timeout=_PATIENCE)
    command = [compose, "-f", str(ROOT / "docker" / "compose.yaml")]
    subprocess.run([*command, "up", "-d"], env=environment, check=True, timeout=_PATIENCE)
    try:
        yield folder
    finally:
        subprocess.run([*command, "logs", "--tail", "40"], env=environment, check=False)
        subprocess.run([*command, "down", "--volumes"], env=environment, check=True, timeout=_PATIENCE)


def test_a_job_ends_although_a_site_and_the_coordinator_are_killed(trial: Path) -> None:
    _until(lambda: _online() == set(SITES))
    run = json.loads(_fedethos("coordinator", "server", "submit", "/job.yaml", "--json"))["run"]
    folder = trial / "server" / "state" / "runs" / run
    _until(lambda: _rounds(folder) >= 1)
    _kill_and_start("site-2")
    _until(lambda: _rounds(folder) >= 2)
    _kill_and_start("coordinator")
    _until((folder / "result.json").exists)

    result = json.loads((folder / "result.json").read_text("utf-8"))
    assert result["status"] == "completed" and result["basis"] == "released"
    for site in SITES:
        said = result["privacy"]["sites"][site]["epsilon"]
        state, _ = read_ledger(trial / site / "ledger.sqlite")
        assert said <= state.accounts[site].epsilon <= 8.0  # no spending was forgotten, and the cap held
        egress.verify(trial / site / "state" / "egress.jsonl")


def test_containers_run_without_rights_and_cannot_write_their_image() -> None:
    for service in ("coordinator", *SITES):
        facts = json.loads(_docker("inspect", _container(service)))[0]
        assert facts["Config"]["User"] == "10001:10001"
        assert facts["HostConfig"]["ReadonlyRootfs"] and facts["HostConfig"]["CapDrop"] == ["ALL"]
        assert not facts["HostConfig"]["PortBindings"]
    writing = ["exec", _container("site-1"), "python", "-c", "open('/opt/fedethos/x', 'w')"]
    assert subprocess.run(["docker", *writing], capture_output=True, check=False).returncode != 0


def test_the_health_check_says_healthy() -> None:
    for service in ("coordinator", *SITES):
        _until(partial(_is_healthy, _container(service)))


def test_the_image_holds_no_pip_and_no_compiler() -> None:
    look = "import importlib.util, shutil; print(importlib.util.find_spec('pip'), shutil.which('gcc'), shutil.which('make'))"
    assert _docker("run", "--rm", "--network", "none", "--entrypoint", "python", IMAGE, "-c", look).strip() == "None None None"


def _is_healthy(container: str) -> bool:
    return _docker("inspect", "-f", "{{.State.Health.Status}}", container).strip() == "healthy"


def _online() -> set[str]:
    try:
        status = json.loads(_fedethos("coordinator", "server", "status", "--json"))
    except subprocess.CalledProcessError:
        return set()
    return {site["name"] for site in status["sites"] if site["online"]}


def _rounds(folder: Path) -> int:
    lines = folder / "rounds.jsonl"
    return lines.read_text("utf-8").count("\n") - 1 if lines.exists() else -1  # round 0 is before training


def _kill_and_start(service: str) -> None:
    _docker("kill", _container(service))
    _docker("start", _container(service))


def _fedethos(service: str, *words: str) -> str:
    return _docker("exec", _container(service), "fedethos", *words)


def _container(service: str) -> str:
    return f"fedethos-test_{service}_1"


def _docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=_PATIENCE).stdout


def _until(holds: Callable[[], bool], seconds: float = _PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(1.0)
