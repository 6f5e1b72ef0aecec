"""The round loop as a ServerApp on any grid. Next on the path: ``server/loop.py``."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedethos.server.loop import Coordination, coordinate


def build_server_app(plan: Coordination) -> ServerApp:
    """A ServerApp that runs ``plan`` on whatever grid it is called with."""
    coordinated = ServerApp()

    @coordinated.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, plan)

    return coordinated
