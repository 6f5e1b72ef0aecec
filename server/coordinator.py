"""The coordinator: keeps the SuperLink running, starts the ServerApp of one run at a time, and goes on after whatever dies.

A run is continued by a new Flower run that starts from the last checkpoint (``server/deployment.py``); Flower itself counts a run
whose ServerApp or SuperLink died as failed for good. ``tick`` is called a few times a second and does what is due.
Next on the path: ``server/superlink.py``, ``server/queue.py``, ``server/server_app.py``.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx

import fedethos
from fedethos.control.wire import JsonObject
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.server.live import LiveState, Problem, read_live
from fedethos.server.notify import Notifier
from fedethos.server.places import Places
from fedethos.server.queue import Entry, Queue, Status
from fedethos.server.registry import Known, synchronise
from fedethos.server.server_app import ServerAppProcess
from fedethos.server.superlink import SuperLink
from fedethos.server_document import ServerFolder
from fedethos.storage import JsonValue
from fedethos.trust import load_trust

MOST_CRASHES = 5  # of a ServerApp without a finished round in between
_LOOK_AT_SITES_SECONDS = 1.0
_LEAST_DISK = 1 << 20  # bytes without which nothing new is started
_WAIT_AFTER_QUORUM, _LONGEST_WAIT = 5.0, 60.0  # a missed quorum is tried again when enough sites are there, and ever more seldom
_MOST_DOUBLED = 10

_log = logging.getLogger(__name__)


class Coordinator:
    """``finished`` is called with the run folder of each completed run. The methods that the control socket offers are thread-safe."""

    def __init__(self, server: ServerFolder, *, finished: Callable[[Path], None]) -> None:
        self.places = Places(server.state)
        self.places.make()
        self._server, self._finished = server, finished
        self._queue = Queue(self.places)
        self._superlink = SuperLink(server)
        self._app = ServerAppProcess(self.places, self._superlink)
        self._notifier = Notifier(server.document.notify)
        self._known: dict[str, Known] = {}
        self._online: dict[str, bool] = {}
        self._trust_read: tuple[float, str] = (0.0, "")
        self._looked_at_sites = 0.0
        self._not_before = 0.0
        self._missed = 0  # quorums, without a new round in between
        self._disk_full = False
        self._lock = threading.RLock()
        self.stopping = threading.Event()

    @property
    def sites(self) -> list[str]:
        """Names of the sites whose keys are answered now."""
        return sorted(self._known)

    # --- life ---

    def start(self) -> None:
        """Bring the SuperLink up, register the keys, and drop what an earlier coordinator left running in Flower."""
        self._superlink.start()
        self._register()
        for run in self._superlink.client.runs():
            if run.status != "finished":
                self._superlink.client.stop_run(run.run_id)
        for entry in self._queue.entries():
            if entry.status is Status.RUNNING:
                self._again(entry, crashed=False)
        self._tell("coordinator-started", {})

    def close(self) -> None:
        """End the ServerApp after its last whole checkpoint, then the SuperLink. The runs go on at the next start."""
        self._app.stop()
        self._superlink.close()
        self._tell("coordinator-stopped", {})
        self._notifier.close()

    def tick(self) -> None:
        """Whatever is due now."""
        with self._lock:
            try:
                self._look_at_disk()
                self._keep_superlink()
                if not self._disk_full:  # the SuperLink answers nothing without its database
                    self._register()
                    self._look_at_sites()
                self._keep_run()
            except httpx.HTTPError as failure:  # the SuperLink is going or coming; the next tick sees which
                _log.warning("the SuperLink did not answer", exc_info=failure)
            except FedethosError as refusal:
                if refusal.code == "NET-516":
                    raise
                _log.error("something could not be done and is tried again", exc_info=refusal)  # a full disk, for example

    def _look_at_disk(self) -> None:
        """A full disk is said once; until there is space again nothing new is started, so that no start counts as a crash."""
        full = shutil.disk_usage(self.places.state).free < _LEAST_DISK
        if full and not self._disk_full:
            self._tell("disk-full", {})
            _log.error("the disk of the state folder is full")
        self._disk_full = full

    def _keep_superlink(self) -> None:
        if self._superlink.alive:
            return
        _log.warning("the SuperLink ended and is started again")
        self._superlink.start()
        self._tell("superlink-restarted", {})

    def _register(self) -> None:
        """Read trust.yaml when it has changed or a new day has begun."""
        today = datetime.now(UTC).date()
        stamp = (_changed_at(self._server.trust), today.isoformat())
        if stamp == self._trust_read:
            return
        try:
            trust = load_trust(self._server.trust)
        except FedethosError as refusal:
            if not self._known:
                raise
            _log.error("trust.yaml has a mistake; the keys read before stay", extra={"code": refusal.code})
            self._tell("trust-refused", {"code": refusal.code})
            self._trust_read = stamp
            return
        before, self._known = self._known, synchronise(self._superlink, trust, today, self.places.sites)
        self._trust_read = stamp
        _log.info("the sites of trust.yaml are registered", extra={"sites": len(self._known)})
        active = self._queue.active()
        if active is not None and any(before.get(name) != self._known.get(name) for name in active.sites):
            _log.info("a site of the run has another key: the run continues with it", extra={"run": active.run})
            self._app.stop()
            self._again(active, crashed=False)

    def _look_at_sites(self) -> None:
        if time.monotonic() - self._looked_at_sites < _LOOK_AT_SITES_SECONDS:
            return
        self._looked_at_sites = time.monotonic()
        online = {node.node_id: node.online for node in self._superlink.client.nodes()}
        before, self._online = self._online, {name: online.get(site.node_id, False) for name, site in self._known.items()}
        for name, is_online in self._online.items():
            if is_online != before.get(name, False):
                self._tell("site-online" if is_online else "site-offline", {"site": name})

    # --- the run ---

    def _keep_run(self) -> None:
        active = self._queue.active()
        if active is None:
            self._start_next()
        elif self._app.alive:
            self._follow(active)
        else:
            self._after(active)

    def _start_next(self) -> None:
        entry = self._queue.next()
        if entry is None or self._disk_full or time.monotonic() < self._not_before:
            return
        here = sum(self._online.get(name, False) for name in entry.sites)
        if here < entry.min_sites:
            if entry.status is not Status.WAITING:
                entry.status = Status.WAITING
                self._queue.save(entry)
                self._tell("run-waiting", {"run": entry.run, "sites": here, "min_sites": entry.min_sites})
            return
        self.places.live(entry.run).unlink(missing_ok=True)
        entry.flower_run = self._app.start(
            entry.run, entry.job_sha256, attempt=entry.starts, quarantine_after=self._server.document.quarantine_after
        )
        entry.status, entry.starts = Status.RUNNING, entry.starts + 1  # why it was started again is said until the next round
        self._queue.save(entry)
        self._tell("run-started" if entry.starts == 1 else "run-continued", {"run": entry.run})

    def _follow(self, entry: Entry) -> None:
        live = read_live(self.places.live(entry.run))
        if live is not None and live.round > entry.round:
            entry.round, entry.crashes, entry.problem, self._missed = live.round, 0, None, 0
            self._queue.save(entry)
            self._tell("round-started", {"run": entry.run, "round": live.round, "rounds": live.rounds})

    def _after(self, entry: Entry) -> None:
        """The ServerApp is gone: complete, refused, or dead."""
        live = read_live(self.places.live(entry.run))
        self._app.stop()
        if live is None or not live.ended:
            self._again(entry, crashed=True)
        elif live.problem is None:
            entry.problem = None
            self._close(entry, Status.COMPLETED)
            self._finished(self.places.run(entry.run))
        elif live.problem.code in ("AGG-710", "RUN-902"):  # too few sites, or a ServerApp of an earlier coordinator still leaves
            entry.problem = live.problem if live.problem.code == "AGG-710" else None
            self._not_before = time.monotonic() + min(_WAIT_AFTER_QUORUM * 2.0**self._missed, _LONGEST_WAIT)
            self._missed = min(self._missed + 1, _MOST_DOUBLED)
            self._again(entry, crashed=False)
        else:
            entry.problem = live.problem
            self._close(entry, Status.FAILED)

    def _again(self, entry: Entry, *, crashed: bool) -> None:
        entry.crashes += crashed
        if entry.crashes > MOST_CRASHES:
            entry.problem = Problem(
                code="RUN-975",
                what=f"The round loop died {entry.crashes} times without finishing a round.",
                fix=f"Look into {self.places.log / 'serverapp.log'}, mend the cause, then: fedethos server resume {entry.run}",
            )
            self._close(entry, Status.FAILED)
            return
        if crashed:
            _log.warning("the ServerApp died and is started again", extra={"run": entry.run})
            self._not_before = time.monotonic() + min(2.0**entry.crashes, 60.0) / 2
            self._tell("run-crashed", {"run": entry.run, "round": entry.round})
        entry.status, entry.flower_run = Status.QUEUED, None
        self._queue.save(entry)

    def _close(self, entry: Entry, status: Status) -> None:
        entry.status, entry.flower_run, self._missed = status, None, 0
        facts: dict[str, JsonValue] = {"run": entry.run}
        if entry.problem is not None:
            facts["code"] = entry.problem.code
        _log.info("a run ended", extra=facts)
        self._tell(f"run-{status}", facts)
        self._queue.save(entry)  # last: on a full disk people have to hear of it all the same

    # --- the control socket ---

    def submit(self, argument: JsonObject) -> JsonObject:
        """``{"job": path of a job.yaml}`` to ``{"run": name}``."""
        path = Path(str(argument["job"]))
        job = load_job(path)
        missing = sorted(set(job.federation.sites) - set(load_trust(self._server.trust).keys_on(datetime.now(UTC).date())))
        with self._lock:
            entry = self._queue.submit(job, path.parent)
        self._tell("run-submitted", {"run": entry.run})
        return {"run": entry.run, "job_sha256": entry.job_sha256, "without_key": missing}

    def pause(self, argument: JsonObject) -> JsonObject:
        """End the ServerApp after its last checkpoint until ``resume``."""
        with self._lock:
            entry = self._chosen(argument, [Status.RUNNING, Status.QUEUED, Status.WAITING])
            if entry.status is Status.RUNNING:
                self._app.stop()
            entry.status, entry.flower_run = Status.PAUSED, None
            self._queue.save(entry)
        self._tell("run-paused", {"run": entry.run})
        return {"run": entry.run}

    def resume(self, argument: JsonObject) -> JsonObject:
        """Continue a run that was paused or failed."""
        with self._lock:
            entry = self._chosen(argument, [Status.PAUSED, Status.FAILED])
            entry.status, entry.crashes, entry.problem = Status.QUEUED, 0, None
            self._queue.save(entry)
            self._not_before = 0.0
        return {"run": entry.run}

    def stop(self, argument: JsonObject) -> JsonObject:
        """With ``run``: end that run for good. Without: stop the coordinator, whose runs go on at its next start."""
        if "run" not in argument:
            self.stopping.set()
            return {}
        with self._lock:
            entry = self._chosen(argument, [status for status in Status if not status.over])
            if entry.status is Status.RUNNING:
                self._app.stop()
            self._close(entry, Status.STOPPED)
        return {"run": entry.run}

    def status(self, argument: JsonObject) -> JsonObject:
        """Everything that ``fedethos server status`` shows."""
        with self._lock:
            return {
                "version": fedethos.__version__,
                "address": self._server.document.address,
                "superlink": {"alive": self._superlink.alive},
                "disk_full": self._disk_full,
                "sites": [{"name": name, "online": self._online.get(name, False)} for name in sorted(self._known)],
                "runs": [self._shown(entry) for entry in self._queue.entries()],
            }

    def _shown(self, entry: Entry) -> JsonObject:
        live = read_live(self.places.live(entry.run)) or LiveState(pid=0)
        going = entry.status is Status.RUNNING
        return {
            "run": entry.run,
            "job_sha256": entry.job_sha256,
            "status": entry.status.value,
            "folder": str(self.places.run(entry.run)),
            "round": max(entry.round, live.round),
            "rounds": live.rounds,
            "stage": live.stage if going else "",
            "seconds_left": max(0.0, round(live.round_ends - time.time(), 1)) if going and live.round_ends else None,
            "sites": {name: live.sites.get(name, "") if going else "" for name in entry.sites},
            "min_sites": entry.min_sites,
            "refusals": [refused.model_dump() for refused in live.refusals],
            "quarantined": live.quarantined,
            "starts": entry.starts,
            "problem": entry.problem.model_dump() if entry.problem else None,
        }

    def _chosen(self, argument: JsonObject, among: list[Status]) -> Entry:
        """The named run, or the only one in one of these states. RUN-974 otherwise."""
        run = argument.get("run")
        found = [entry for entry in self._queue.entries() if entry.status in among and run in (None, entry.run)]
        if len(found) == 1:
            return found[0]
        raise FedethosError(
            "RUN-974",
            "No run fits this command." if not found else f"{len(found)} runs fit this command.",
            fix="See the runs with `fedethos server status`, and name one.",
        )

    def _tell(self, event: str, facts: JsonObject) -> None:
        self._notifier.tell(event, {"time": datetime.now(UTC).isoformat(timespec="seconds"), **facts})


def _changed_at(path: Path) -> float:
    """0.0 for a file that is not there, as in the moment in which an editor replaces it."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
