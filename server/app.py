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
from fedethos.server.places import ATTEMPT_KEY, JOB_KEY, QUARANTINE_KEY, RUN_KEY

app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    config = context.run_config
    run_deployed(
        grid,
        run=str(config.get(RUN_KEY, "")),
        job_sha256=str(config.get(JOB_KEY, "")),
        attempt=int(config.get(ATTEMPT_KEY, 0)),
        quarantine_after=int(config.get(QUARANTINE_KEY, 0)) or None,
    )


def build_server_app(plan: Coordination) -> ServerApp:
    """A ServerApp that runs ``plan`` on whatever grid it is called with."""
    coordinated = ServerApp()

    @coordinated.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, plan)

    return coordinated
