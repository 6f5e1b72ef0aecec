"""The sites of a run as the coordinator sees them: whom it may ask, how it asks, and what it makes of their answers.

Every message of a run goes through ``Roster.ask``. Next on the path: ``server/exchange.py`` (one exchange), ``server/standing.py``
(refusals and quarantine), ``server/validation.py`` (what is refused).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message
from flwr.serverapp import Grid

import fedethos
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import SETUP, Arrays, Reply, Request, SetupReply, encode_request, repeated
from fedethos.server.exchange import Exchange, SiteState, Talk, exchange, require_quorum
from fedethos.server.site import Site
from fedethos.server.standing import Standings

log = logging.getLogger(__name__)

_AT_SETUP = ("AGG-711", "AGG-714")  # a site that only has to install something is not on its way to quarantine

Accept = Callable[[Site, Reply], Reply]
"""Refuses a decoded reply by raising FedethosError; returns what is to be kept of it."""


@dataclass
class Roster:
    """``run``: the run's name for ever; ``attempt``: how often it was continued. ``frozen``: tensors that a site gets at its setup.

    ``say`` is told why a site was not taken in.
    """

    grid: Grid
    job: Job
    run: str
    sites: Mapping[int, Site]
    base_sha256: str
    frozen: Arrays
    standings: Standings
    say: Callable[[str], None]
    attempt: int = 0
    set_up: set[str] = field(default_factory=set)

    def active(self) -> dict[int, Site]:
        """Sites that are not quarantined. AGG-713 when they are fewer than the quorum."""
        active = {node_id: site for node_id, site in self.sites.items() if not self.standings.is_quarantined(site.name)}
        if len(active) < self.job.federation.min_sites:
            raise FedethosError(
                "AGG-713",
                f"Only {len(active)} sites are not quarantined, and federation.min_sites is {self.job.federation.min_sites}.",
                where=", ".join(sorted(site.name for site in self.sites.values() if site.node_id not in active)),
                why="A site whose replies were refused again and again is not asked any more.",
                fix="Find out with these sites what was wrong (the codes are in rounds.jsonl), then start a new run.",
            )
        return active

    def request(self, round: int, arrays: Arrays) -> Request:
        """What every request of this run says about itself."""
        return Request(job_sha256=self.job.sha256, run=self.run, round=round, attempt=self.attempt, arrays=arrays)

    def set_up_everybody(self) -> None:
        """Send the frozen tensors and make sure that everybody holds the same base model and version. AGG-710 below the quorum.

        Who is late now is set up when it is next asked for something.
        """
        self.ask([self._setup_message(site) for site in self.active().values()], _nothing_else, doing="setup of the sites")

    def ask(
        self,
        messages: Iterable[Message],
        accept: Accept,
        *,
        doing: str,
        on_state: Callable[[str, SiteState], None] = lambda *_: None,
    ) -> Exchange:
        """One exchange with the sites that ``messages`` go to. AGG-710 below the quorum.

        ``accept`` sees replies to ``messages``; setups on the way are the roster's own affair.
        """

        def accept_any(site: Site, reply: Reply) -> Reply:
            kept = self._accept_setup(site, reply) if isinstance(reply, SetupReply) else accept(site, reply)
            self.standings.accepted(site.name)
            return kept

        talk = Talk(
            accept=accept_any,
            on_state=on_state,
            on_refusal=self._note_refusal,
            needs_setup=lambda site: site.name not in self.set_up,
            setup_of=self._setup_message,
            told=lambda site: self.standings.of(site.name).last,
        )
        told, before = [self._telling(message) for message in messages], self.standings.quarantined
        outcome = exchange(self.grid, told, self.sites, talk, deadline=self.job.federation.deadline)
        self._part_with([site for site in self.sites.values() if site.name in self.standings.quarantined.keys() - before.keys()])
        require_quorum(outcome, self.job.federation.min_sites, doing=doing)
        return outcome

    def _part_with(self, sites: list[Site]) -> None:
        """A last message to sites that have just been quarantined, which says so and why. Nobody waits for the answer."""
        if sites:
            self.grid.push_messages([self._setup_message(site, quarantined=True) for site in sites])

    def _setup_message(self, site: Site, *, quarantined: bool = False) -> Message:
        request = replace(self.request(0, self.frozen), fedethos=fedethos.__version__, quarantined=quarantined)
        return self._telling(Message(encode_request(SETUP, request), site.node_id, SETUP, group_id="setup"))

    def _telling(self, message: Message) -> Message:
        """The same request, which says to its site why its last reply was refused."""
        last = self.standings.of(self.sites[message.metadata.dst_node_id].name).last
        if last is not None:
            message.content = repeated(message.content, 0, last)
        return message

    def _accept_setup(self, site: Site, reply: SetupReply) -> Reply:
        if reply.fedethos != fedethos.__version__:
            raise FedethosError(
                "AGG-714",
                f"A site runs fedethos {reply.fedethos}, and this coordinator {fedethos.__version__}.",
                where=site.name,
                why="Two versions may count, clip or aggregate differently, and a site approves the code of one version.",
                fix="Install the same version on both sides; the site is taken in as soon as it has it.",
            )
        if reply.model_sha256 != self.base_sha256:
            raise FedethosError("AGG-711", "A site holds another base model than the coordinator.", where=site.name)
        self.set_up.add(site.name)
        return reply

    def _note_refusal(self, site: Site, refusal: FedethosError) -> None:
        log.warning("a site's reply was refused", extra={"site": site.name, "run": self.run, "code": refusal.code})
        at_setup = refusal.code in _AT_SETUP
        if at_setup:
            self.set_up.discard(site.name)
            self.say(str(refusal))
        self.standings.refused(site.name, refusal.code, counts=not at_setup)


def _nothing_else(site: Site, reply: Reply) -> Reply:
    raise FedethosError("AGG-701", "A message does not follow the message contract: it is not the reply to a setup.")
