"""A node: one connection outwards, one worker, and everything between them that decides what is answered.

It takes one message at a time: onto its disk, through ``client/request_handler.py``, into the record of what left, and only then out. A
node that is killed anywhere takes the message up again. It runs no code from the network and imports no deep-learning library.
Next on the path: ``client/request_handler.py``; ``fedethos/flower_fleet.py`` is the connection.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from flwr.app import Message

import fedethos
from fedethos.client.egress import FILE as EGRESS_FILE
from fedethos.client.egress import Egress, read
from fedethos.client.inbox import Inbox, Kept
from fedethos.client.ledger_of_site import check_ledger_remembers, ledger_state
from fedethos.client.node_key import load_node_key
from fedethos.client.request_handler import RequestHandler
from fedethos.client.told import Told
from fedethos.client.worker_handle import WorkerHandle
from fedethos.control.serving import ControlServer, Method, serve_control
from fedethos.control.wire import JsonObject
from fedethos.errors import FedethosError
from fedethos.flower import quiet_logs
from fedethos.flower_fleet import Endpoint, FleetConnection, RunEndedError
from fedethos.logs import incident_log, structured_log
from fedethos.messages import Request
from fedethos.site import SiteDocument

log = logging.getLogger(__name__)

SOCKET = "control.sock"
_PAUSED_SECONDS = 0.5


class Supervisor:
    """A running node. ``stop`` may be called from any thread; ``run`` returns soon after, and a second ``stop`` gives up what is computed.

    Parameters
    ----------
    document : Path
        The site.yaml, whose folder relative paths start from.
    say : callable
        Told in one line when the node starts and stops and the connection comes and goes, for whoever watches the process.
    """

    def __init__(self, document: Path, site: SiteDocument, say: Callable[[str], None] = lambda text: None) -> None:
        self.site, self._folder, self._say = site, document.parent, say
        self._name, self._coordinator = site.as_node()
        self._worker = WorkerHandle(document, site.device, document.parent / site.log / "worker-stderr.log")
        self._stopping, self._giving_up = threading.Event(), threading.Event()
        self._paused, self._resting = threading.Event(), threading.Event()
        self._now: Request | None = None
        self._kind: str | None = None
        self._answered = self._refused = 0
        self._told = Told(lambda text: say(f"{self._name}: {text}"))

    def run(self) -> None:
        """Answer until ``stop``.

        Raises
        ------
        FedethosError
            SEC-620 and SEC-621 for the key, SEC-664 for the record of what left, PRIV-312 and PRIV-362 for the ledger, NET-521 when this
            node runs already, NET-542 and SEC-680 as ``FleetConnection``, RUN-904 and RUN-905 when the state folder cannot be written: a
            node that cannot keep its records stops.
        """
        os.umask(0o077)
        quiet_logs()
        state, logs = self._folder / self.site.state, self._folder / self.site.log
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = load_node_key(self._folder / self.site.key)
        with ExitStack() as resources:
            enter = resources.enter_context
            enter(structured_log(logs / "node.jsonl", component="supervisor"))
            enter(incident_log(state / "incidents.log"))
            self._fleet = FleetConnection(self._endpoint(), key, self._stopping, state / "node-id")
            control = enter(serve_control(state / SOCKET, self._methods(), "node"))
            self._egress = enter(Egress(state / EGRESS_FILE))
            check_ledger_remembers(read(state / EGRESS_FILE), ledger_state(self._folder / self.site.ledger))
            self._inbox = Inbox(state / "inbox")
            enter(self._worker)
            self._handler = enter(RequestHandler(self.site, self._folder, self._worker))
            enter(self._fleet)
            log.info("the node started", extra={"site": self._name, "version": fedethos.__version__})
            self._say(f"{self._name}: fedethos {fedethos.__version__}, state in {state}, log in {logs}")
            self._say(f"{self._name}: connecting to {self._coordinator.address}; Ctrl-C stops it after the reply that is being computed")
            self._loop(control)
            log.info("the node stopped", extra={"site": self._name})
            self._say(f"{self._name}: stopped")

    def stop(self, *, now: bool = False) -> None:
        """End after the message that is being answered; ``now``: at once, and take it up again at the next start."""
        if now or self._stopping.is_set():
            self._giving_up.set()
            self._worker.give_up()
        self._stopping.set()

    def _endpoint(self) -> Endpoint:
        place = self._coordinator
        authority = None if place.ca is None else _read_authority(self._folder / place.ca)
        return Endpoint(place.address, authority, insecure=place.insecure, proxy=place.proxy)

    def _loop(self, control: ControlServer) -> None:
        if (kept := self._inbox.kept()) is not None:
            log.info("taking up the message of before the restart")
            self._take(kept)
        problem: str | None = "not asked yet"
        while not self._stopping.is_set():
            if self._paused.is_set():
                control.set_not_serving()
                self._resting.set()
                self._stopping.wait(_PAUSED_SECONDS)
                continue
            self._resting.clear()
            message = self._fleet.receive(self._handler.most_bytes)
            problem = self._note(control, problem)
            if message is None:
                self._stopping.wait(self._fleet.pause)
                continue
            self._inbox.keep(message)
            self._fleet.confirm(message)
            self._take(Kept(message, checked=False, reply=None))
        control.set_not_serving()

    def _take(self, kept: Kept) -> None:
        """Answer one message; it is off the inbox once the reply was delivered, or nobody waits for it."""
        message = kept.message
        self._kind = message.metadata.message_type
        try:
            if time.time() > message.metadata.created_at + message.metadata.ttl:
                raise RunEndedError
            answer = self._handler.answer(message, known=kept.checked, kept=kept.reply, on_checked=self._checked)
            if self._giving_up.is_set():
                return
            if answer.code is None:
                self._inbox.keep_reply(answer.reply)
            self._egress.append(answer.as_sent(message.metadata.message_type))
            self._fleet.send(Message(answer.reply, reply_to=message))
        except RunEndedError:
            log.info("nobody waits for the reply: the run has ended")
        except FedethosError as problem:
            if problem.code != "NET-546":
                raise
            return
        else:
            self._answered += answer.code is None
            self._refused += answer.code is not None
            log.info("reply sent", extra=self._about())
        finally:
            self._now = self._kind = None
        self._inbox.clear()

    def _checked(self, request: Request) -> None:
        self._inbox.mark_checked()
        self._now = request
        log.info("working on a request", extra=self._about())
        self._told.listen(request, self._about())

    def _about(self) -> dict[str, str | int]:
        if self._now is None:
            return {}
        return {"run": self._now.run, "round": self._now.round, "message_type": self._kind or "", "attempt": self._now.attempt}

    def _note(self, control: ControlServer, before: str | None) -> str | None:
        """Log and serve whether there is a connection, when that changes; returns the code of the present problem."""
        problem = self._fleet.problem
        code = None if problem is None else problem.code
        if problem is None:
            control.set_serving()
        else:
            control.set_not_serving()
        if code != before:
            log.info("connected" if code is None else "not connected", extra={} if code is None else {"code": code})
            self._say(f"{self._name}: {'connected to ' + self._coordinator.address if problem is None else problem}")
        return code

    # --- the control socket ---

    def _methods(self) -> dict[str, Method]:
        return {"status": self._status, "pause": self._pause, "resume": self._resume, "stop": self._stop}

    def _status(self, _: JsonObject) -> JsonObject:
        problem, now = self._fleet.problem, self._now
        return {
            "site": self._name,
            "version": fedethos.__version__,
            "state": self._state(),
            "coordinator": self._coordinator.address,
            "connected": problem is None and self._fleet.node_id is not None,
            "problem": None if problem is None else {"code": problem.code, "what": problem.what, "fix": problem.fix},
            "request": None if now is None else {"run": now.run, "round": now.round, "type": self._kind, "attempt": now.attempt},
            "answered": self._answered,
            "refused": self._refused,
            "told": self._told.code,
            "quarantined": self._told.quarantined,
            "worker": self._worker.pid,
        }

    def _state(self) -> str:
        if self._stopping.is_set():
            return "stopping"
        if self._paused.is_set():
            return "paused" if self._resting.is_set() else "pausing"  # what it is working on is finished and sent first
        return "waiting" if self._kind is None else "working"

    def _pause(self, _: JsonObject) -> JsonObject:
        self._paused.set()
        log.info("paused")
        return {"state": self._state()}

    def _resume(self, _: JsonObject) -> JsonObject:
        self._paused.clear()
        log.info("resumed")
        return {"state": self._state()}

    def _stop(self, argument: JsonObject) -> JsonObject:
        self.stop(now=argument.get("now") is True)
        return {"state": self._state()}


def _read_authority(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FedethosError(
            "NET-542",
            f"The certificate authority's file cannot be read ({type(error).__name__}).",
            where=str(path),
            fix="Put the file there that the coordinator gave you, or change coordinator.ca in site.yaml.",
        ) from None
