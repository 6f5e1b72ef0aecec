"""The ServerApp: Flower's entry into the round loop.

``build_server_app`` makes it around a ``Coordination``. ``app`` is what Flower's own tools find (pyproject.toml); it has no
coordination, so it refuses to run.
Next on the path: ``server/loop.py``.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedethos.errors import FedethosError
from fedethos.server.loop import Coordination, coordinate

app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    raise FedethosError(
        "RUN-940",
        "This ServerApp was started without a coordinator.",
        why="It would not know which sites are approved.",
        fix="Run a simulation with `fedethos simulate JOB`.",
    )


def build_server_app(plan: Coordination) -> ServerApp:
    """A ServerApp that runs ``plan`` on whatever grid it is called with."""
    coordinated = ServerApp()

    @coordinated.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, plan)

    return coordinated
