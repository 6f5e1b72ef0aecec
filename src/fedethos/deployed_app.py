"""The ServerApp of a deployment (``server/runner.py``; pyproject.toml names it to Flower): the round loop with this machine's model.

Inside a coordinator it runs the job of its run folder, anywhere else it refuses. It stands above the rooms, as the command line does: how
a model is made is the client's affair, and the server does not know it. Next on the path: ``server/deployment.py``.
"""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedethos.client.registry import prepare_task
from fedethos.server.deployment import run_deployed
from fedethos.server.places import ATTEMPT_KEY, JOB_KEY, QUARANTINE_KEY, RUN_KEY

app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    config = context.run_config
    run_deployed(
        grid,
        prepare_task,
        run=str(config.get(RUN_KEY, "")),
        job_sha256=str(config.get(JOB_KEY, "")),
        attempt=int(config.get(ATTEMPT_KEY, 0)),
        quarantine_after=int(config.get(QUARANTINE_KEY, 0)) or None,
    )
