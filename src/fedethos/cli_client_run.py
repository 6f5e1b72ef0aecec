"""The verbs of a running node: ``fedethos client start|status|pause|resume|stop|leave``.

Next on the path: ``client/supervisor.py`` is what ``start`` runs; the others talk to it over its control socket.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

Document = Annotated[Path, typer.Argument(metavar="SITE", help="The site's document, site.yaml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


def start(site: Document = Path("site.yaml")) -> None:
    """Run this site's node: connect to the coordinator and answer what was approved, until it is stopped."""
    from fedethos.client.supervisor import Supervisor
    from fedethos.site import load_site

    supervisor = Supervisor(site.resolve(), load_site(site))

    def stop(number: int, frame: FrameType | None) -> None:
        supervisor.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    supervisor.run()


def add_run_verbs(app: typer.Typer) -> None:
    """Register the verbs on the sub-command ``client``."""
    app.command()(start)
