"""The ServerApp: Flower's entry into the round loop.

``build_server_app`` makes it around a ``Coordination``. ``app`` is what Flower loads (pyproject.toml): inside a coordinator it runs
the job of its run folder (``server/deployment.py``), anywhere else it refuses.
Next on the path: ``server/loop.py``.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedethos.server.deployment import run_deployed
from fedethos.server.loop import Coordination, coordinate
from fedethos.server.places import JOB_KEY, RUN_KEY

app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    run_deployed(grid, run=str(context.run_config.get(RUN_KEY, "")), job_sha256=str(context.run_config.get(JOB_KEY, "")))


def build_server_app(plan: Coordination) -> ServerApp:
    """A ServerApp that runs ``plan`` on whatever grid it is called with."""
    coordinated = ServerApp()

    @coordinated.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, plan)

    return coordinated
