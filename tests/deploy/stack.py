"""A coordinator and three sites as processes of their own on loopback, with TLS and keys, driven by the real command line.

Where the kernel allows it, they live in a network that has nothing but loopback (``network.py``). What the nodes send goes through a
recorder (``relay.py``), and strings that must never be in it are planted at each site.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import yaml
from tests.deploy.network import Network

from fedethos.certificates import write_private
from fedethos.cli import run as fedethos
from fedethos.client.node_key import write_node_key
from fedethos.control.calling import call_control
from fedethos.errors import FedethosError
from fedethos.runfolder import RunFolder
from fedethos.server.superlink import free_port
from fedethos.simulations.benchmarks.processes import children

ROOT = Path(__file__).parents[2]
SITES = ("north", "south", "west")
ROWS = 600  # records of each site
SEEDED: dict[str, object] = {"mode": "none", "secure_rng": False}  # a site's ledger takes no seeded noise

Words = dict[str, object]

WOMEN: Words = {"name": "women", "filter": {"sex": ["Female"]}, "metric": "error_rate", "limit": 0.5}
"""A scenario whose truth stands beside it in a result: the group ``Female``."""

CANARIES = {place: f"canary{number}jane{number}doe" for number, place in enumerate(("folder", "file", "key", "note", "environment"))}


def job_of(name: str, *, rounds: int = 3, **sections: Words) -> Words:
    """A tabular job of the three sites; a keyword replaces keys of that section."""
    job: Words = {
        "schema": "fedethos/job/v1",
        "name": name,
        "task": "tabular-classification",
        "model": {"path": "builtin:linear"},
        "data": {
            "path": "at-each-site.csv",
            "na_values": ["?"],
            "features": {"age": {"low": 17, "high": 90}, "education_num": {"low": 1, "high": 16}, "hours_per_week": {"low": 1, "high": 99}},
            "label": {"column": "income", "values": ["<=50K", ">50K"], "favorable": ">50K"},
            "sensitive": {"sex": ["Female", "Male"]},
            "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        },
        "training": {"local_steps": 2, "batch_size": 64, "learning_rate": 0.1},
        "privacy": {"epsilon": 8.0},
        "federation": {"rounds": rounds, "min_sites": 2, "deadline": "150s", "sites": {site: {"declared_size": 400} for site in SITES}},
    }
    for section, words in sections.items():
        job[section] = {**job[section], **words}
    return job


@dataclass
class Stack:
    """``folder``: what ``fedethos keys trial`` made."""

    folder: Path
    network: Network = field(default_factory=Network)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def server(self) -> list[str]:
        return ["--server", str(self.folder / "server" / "server.yaml")]

    @property
    def state(self) -> Path:
        return self.folder / "server" / "state"

    # --- processes ---

    def start(self, name: str, program: Path | None = None) -> None:
        """``coordinator`` or a site's name. ``program``: in place of the ``fedethos`` command."""
        words = ["server", "start", *self.server] if name == "coordinator" else ["client", "start", str(self.folder / name / "site.yaml")]
        self._spawn(name, ["-c", "from fedethos.cli import main; main()"] if program is None else [str(program)], words)

    def _spawn(self, name: str, program: list[str], words: list[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                [*self.network.prefix, sys.executable, *program, *words], stdout=out, stderr=out, env=self.environment
            )

    @property
    def environment(self) -> dict[str, str]:
        watch = {"PYTHONPATH": str(self.folder / "watch"), "PATIENT_DATABASE": CANARIES["environment"]}
        return {**os.environ, "OMP_NUM_THREADS": "1", **watch}

    def start_coordinator(self) -> None:
        self.start("coordinator")
        self.until(lambda: self.processes["coordinator"].poll() is not None or bool(self.status()["superlink"]["alive"]))

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash or the kernel would."""
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, name: str) -> int:
        self.processes[name].send_signal(signal.SIGTERM)
        return self.processes[name].wait(40)

    def kill_child(self, module: str) -> None:
        """SIGKILL to the coordinator's child that runs ``python -m module``."""
        found = [pid for pid in children(self.processes["coordinator"].pid) if module in _command(pid)]
        assert len(found) == 1
        os.kill(found[0], signal.SIGKILL)

    def close(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(60)
        self.network.close()

    # --- what was seen ---

    def sent(self) -> list[bytes]:
        """Everything that nodes sent so far, as it entered TLS, by connection."""
        return [path.read_bytes() for path in (self.folder / "sent").iterdir()]

    def heard(self) -> list[Words]:
        """Events of the notification hook."""
        return [json.loads(line) for line in (self.folder / "heard").read_text().splitlines()]

    def sockets(self) -> list[tuple[str, str, str]]:
        """What all processes did with sockets so far: (program, audit event, address), in Python's words."""
        lines = (self.folder / "watch" / "sockets.log").read_text().splitlines()
        return [tuple(json.loads(line)) for line in lines]

    # --- runs ---

    def add_stranger(self) -> None:
        """The folder of a site that has everything but a place in trust.yaml."""
        folder, west = self.folder / "stranger", self.folder / "west"
        folder.mkdir()
        shutil.copy(west / "ca.pem", folder)
        document = yaml.safe_load((west / "site.yaml").read_text()) | {"name": "stranger", "account": "stranger", "key": "node.key"}
        write_private(folder / "site.yaml", yaml.safe_dump(document).encode())
        write_node_key(folder / "node.key")

    def write_job(self, job: Words) -> Path:
        path = self.folder / f"{job['name']}.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    def approve(self, job: Path, sites: tuple[str, ...] = SITES) -> None:
        for site in sites:
            assert fedethos(["client", "approve", str(job), str(self.folder / site / "site.yaml"), "--yes"]) == 0

    def submit(self, job: Path) -> str:
        answer = call_control(self.state / "control.sock", "submit", {"job": str(job)})
        return str(answer["run"])

    def run_to_end(self, job: Words) -> RunFolder:
        path = self.write_job(job)
        self.approve(path)
        return self.ended(self.submit(path))

    def ended(self, run: str, seconds: float = 400.0) -> RunFolder:
        def over() -> dict | None:
            state = self.run(run)
            return state if state["status"] in ("completed", "failed", "stopped") else None

        state = self.until(over, seconds)
        assert state["status"] == "completed", state
        return RunFolder(self.state / "runs" / run)

    def status(self) -> dict:
        try:
            return call_control(self.state / "control.sock", "status", {})
        except FedethosError:
            return {"superlink": {"alive": False}, "sites": [], "runs": []}

    def run(self, run: str) -> dict:
        return next((one for one in self.status()["runs"] if one["run"] == run), {"status": "", "round": 0})

    def until(self, holds: Callable[[], object], seconds: float = 300.0) -> object:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := holds():
                return found
            time.sleep(0.2)
        raise AssertionError(f"it did not come so far: {json.dumps(self.status(), indent=1)}")


WATCH = """
import json, os, sys
log = os.open(os.path.join(os.path.dirname(__file__), "sockets.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def hook(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        address = arguments[1] if event in ("socket.connect", "socket.bind", "socket.sendto") else arguments[0]
        os.write(log, (json.dumps([" ".join(sys.orig_argv[1:]), event, repr(address)]) + "\\n").encode())
sys.addaudithook(hook)
"""


def make_stack(folder: Path) -> Stack:
    """Made, with its recorder; nothing else is started."""
    sites = [part for site in SITES for part in ("--site", site)]
    gateway, relay = free_port(), free_port()
    assert fedethos(["keys", "trial", str(folder), "--address", f"127.0.0.1:{gateway}", "--connect", f"127.0.0.1:{relay}", *sites]) == 0
    adult = pd.read_parquet(ROOT / "src/fedethos/data/builtin/adult.parquet").sample(ROWS * len(SITES), random_state=1)
    for number, site in enumerate(SITES):
        write_records(folder, site, adult.iloc[number * ROWS : (number + 1) * ROWS].assign(note=CANARIES["note"]))
        (folder / site / "node.key").rename(folder / site / f"{CANARIES['key']}.key")
        path = folder / site / "site.yaml"
        document = yaml.safe_load(path.read_text())
        document |= {"caps": {"lifetime_epsilon": 200.0, "per_job_epsilon": 50.0}, "device": "cpu", "allow_unprotected": True}
        document |= {"key": f"{CANARIES['key']}.key", "data": {"path": str(records(folder, site).relative_to(folder / site))}}
        path.write_text(yaml.safe_dump(document))
    (folder / "watch").mkdir()
    (folder / "sent").mkdir()
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    server = folder / "server" / "server.yaml"
    hear = f"import sys; open({str(folder / 'heard')!r}, 'a').write(sys.stdin.read())"
    server.write_text(
        yaml.safe_dump(yaml.safe_load(server.read_text()) | {"notify": [sys.executable, "-S", "-c", hear], "quarantine_after": 2})
    )
    stack = Stack(folder)
    files = [str(folder / name) for name in ("server/server.pem", "server/server.key", "north/ca.pem", "sent")]
    stack._spawn("relay", [str(Path(__file__).with_name("relay.py"))], [str(relay), str(gateway), *files])
    return stack


def claim_only_stack(folder: Path) -> None:
    """Fail when another process of this test run has made a stack already. ``folder``: one that all of them know."""
    try:
        (folder / "stack").touch(exist_ok=False)
    except FileExistsError:
        pytest.fail("A second stack in one test run: pytest-xdist spread the group deploy over its workers (docs/decisions.md, pytest).")


def records(folder: Path, site: str) -> Path:
    return folder / site / CANARIES["folder"] / f"{CANARIES['file']}.csv"


def write_records(folder: Path, site: str, table: pd.DataFrame) -> None:
    path = records(folder, site)
    path.parent.mkdir(exist_ok=True)
    table.to_csv(path, index=False)


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
