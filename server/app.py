"""The ServerApp: Flower's entry into the round loop.

``app`` is what Flower's own tools find (pyproject.toml); a simulation builds one around its own ``Coordination``.
Next on the path: ``server/loop.py``.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedethos.server.loop import Coordination, coordinate


def build_server_app(plan: Coordination) -> ServerApp:
    """A ServerApp that runs ``plan`` on whatever grid it is called with."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, plan)

    return app
