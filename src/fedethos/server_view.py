"""``fedethos server status`` for a person: a page, or the same page live."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pydantic import BaseModel, ConfigDict
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedethos.storage import JsonValue
from fedethos.wording import duration, natural

_EVERY_SECONDS = 1.0
_SHOWN_REFUSALS = 5
_SHOWN_ENDED = 5
_STYLE = {"running": "cyan", "waiting": "yellow", "queued": "", "paused": "yellow", "completed": "green", "failed": "red", "stopped": "dim"}


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Site(_Part):
    name: str
    online: bool


class _Refusal(_Part):
    round: int
    site: str
    code: str
    incident: str


class _Problem(_Part):
    code: str
    what: str
    why: str
    fix: str


class _Run(_Part):
    run: str
    status: str
    round: int
    rounds: int
    stage: str
    seconds_left: float | None
    sites: dict[str, str]
    min_sites: int
    refusals: list[_Refusal]
    quarantined: dict[str, str]
    starts: int
    folder: str
    problem: _Problem | None


class _Status(_Part):
    version: str
    address: str
    disk_full: bool
    sites: list[_Site]
    runs: list[_Run]


def print_status(answer: Mapping[str, JsonValue], console: Console | None = None) -> None:
    """Print the answer of the control socket's ``status``."""
    (console or Console(highlight=False)).print(_page(_Status.model_validate(answer)))


def watch_status(ask: Callable[[], Mapping[str, JsonValue]], console: Console | None = None) -> None:
    """Ask again every second until Ctrl-C."""
    console = console or Console(highlight=False)
    page = fitting(ask(), console)
    with suppress(KeyboardInterrupt), Live(page, console=console, auto_refresh=False, screen=False) as live:
        while True:
            time.sleep(_EVERY_SECONDS)
            live.update(fitting(ask(), console), refresh=True)


def fitting(answer: Mapping[str, JsonValue], console: Console) -> Group:
    """The longest page that fits the terminal: first runs that have ended are left out, then sites share a line. What goes on stays."""
    status, page = _Status.model_validate(answer), Group()
    for ended, brief in ((_SHOWN_ENDED, False), (1, False), (0, False), (1, True), (0, True)):
        page = _page(status, ended=ended, brief=brief)
        if len(console.render_lines(page)) < console.height:
            break
    return page


def _page(status: _Status, *, ended: int = _SHOWN_ENDED, brief: bool = False) -> Group:
    online = sum(site.online for site in status.sites)
    parts: list[RenderableType] = [
        Text(f"Coordinator {status.address}, fedethos {status.version}: {online} of {len(status.sites)} sites online", style="bold"),
        *(_sites_on_a_line(status.sites) if brief else [_sites(status.sites)]),
    ]
    if status.disk_full:
        parts.append(Text("\nThe disk of the state folder is full. Free some space: what waits goes on by itself.", style="bold red"))
    going = [run for run in status.runs if run.status not in ("completed", "failed", "stopped")]
    over = [run for run in status.runs if run not in going]
    names = {site.name: site.online for site in status.sites}
    for run in [*(over[-ended:] if ended else []), *going]:
        parts.extend(_run(run, names))
    if not status.runs:
        parts.append(Text("\nNo run. Next: fedethos server submit JOB"))
    return Group(*parts)


def _sites(sites: Sequence[_Site]) -> Table:
    table = Table.grid(padding=(0, 3))
    for site in sites:
        state = Text("online", style="green") if site.online else Text("offline", style="yellow")
        table.add_row(Text(f"  {site.name}"), state)
    return table


def _sites_on_a_line(sites: Sequence[_Site]) -> list[Text]:
    words = {True: ("online", "green"), False: ("offline", "yellow")}
    return [
        Text.assemble("  ", words[here], f"  {', '.join(site.name for site in sites if site.online is here)}")
        for here in words
        if any(site.online is here for site in sites)
    ]


def _run(run: _Run, online: Mapping[str, bool]) -> list[RenderableType]:
    words = [f"round {run.round} of {run.rounds}"] if run.rounds else []
    words += [run.stage.lower()] if run.stage else []
    words += [f"deadline in {duration(run.seconds_left)}"] if run.seconds_left is not None else []
    words += [f"started {run.starts} times"] if run.starts > 1 else []
    parts: list[RenderableType] = [
        Text.assemble("\n", (run.run, "bold"), "  ", (run.status, _STYLE[run.status]), f"  {', '.join(words)}" if words else ""),
    ]
    if run.status == "waiting":
        here = sum(online.get(name, False) for name in run.sites)
        missing = [name for name in run.sites if not online.get(name, False)]
        parts.append(_indented(f"{here} of {len(run.sites)} sites are online, {run.min_sites} are needed. Missing: {', '.join(missing)}"))
    if states := {name: state for name, state in run.sites.items() if state}:
        parts.append(_indented(", ".join(f"{name} {states[name]}" for name in sorted(states, key=natural))))
    for refusal in run.refusals[-_SHOWN_REFUSALS:]:
        incident = f" (incident {refusal.incident})" if refusal.incident else ""
        parts.append(_indented(f"round {refusal.round}: {refusal.site} refused with {refusal.code}{incident}", style="yellow"))
    for site, code in run.quarantined.items():
        parts.append(
            _indented(f"{site} is quarantined after too many refusals, the last with {code}: not asked again in this run", style="red")
        )
    if run.problem is not None:
        said = (run.problem.what, run.problem.why, run.problem.fix)
        parts.append(_indented(f"{run.problem.code} {' '.join(filter(None, said))}", style="red" if run.status == "failed" else "yellow"))
    if run.status == "completed":
        parts.append(_indented(f"Next: fedethos report {run.folder}"))
    return parts


def _indented(text: str, style: str = "") -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, 2), expand=False)
