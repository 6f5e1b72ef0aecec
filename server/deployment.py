"""A run with real sites, inside the ServerApp's process: job, model and run folder from the state folder, then the round loop.

Flower starts it with the run's name and the job's hash (``fedethos/deployed_app.py``); job and code never come over the network.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from flwr.serverapp import Grid

from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.flower import quiet_logs
from fedethos.flower_grid import LOST_SUPERLINK, checked
from fedethos.incidents import record
from fedethos.messages import Arrays
from fedethos.runfolder import RunFolder
from fedethos.server.global_model import Prepare
from fedethos.server.live import LiveFile, Problem
from fedethos.server.loop import Coordination, coordinate
from fedethos.server.manifest import ModelFacts, run_manifest
from fedethos.server.outcome import DEPLOYMENT
from fedethos.server.places import STATE_VARIABLE, Places
from fedethos.server.site import deployed_sites


def run_deployed(grid: Grid, prepare: Prepare, *, run: str, job_sha256: str, attempt: int, quarantine_after: int | None) -> None:
    """Run or continue ``run`` to its end. How it ended stands in its live file.

    ``prepare`` makes the job's model; ``attempt``: how often the run was started before.

    Raises
    ------
    FedethosError
        RUN-940 outside a coordinator; RUN-972 when the run folder holds another job; else what ended the run.
    """
    places = _places()
    with RunFolder(places.run(run)).resume() as folder:
        job = load_job(folder.job)
        live = LiveFile(places.live(run), rounds=job.federation.rounds, deadline=job.federation.deadline)
        try:
            if job.sha256 != job_sha256:
                raise FedethosError("RUN-972", "The run folder holds another job than was submitted.", where=str(folder.path))
            live.remember(folder.read_rounds())
            if not folder.result.exists():
                with _coordination(run, folder, live, prepare, json.loads(places.sites.read_bytes())) as plan:
                    coordinate(checked(grid), replace(plan, attempt=attempt, quarantine_after=quarantine_after))
        except FedethosError as refusal:
            live.end(_problem(run, refusal))
            raise
        except LOST_SUPERLINK as failure:  # no end of the run: the coordinator brings both back
            incident = record(failure)
            raise FedethosError("NET-518", f"The ServerApp lost its SuperLink: {type(failure).__name__}, incident {incident.id}.") from None
        except Exception as failure:  # its text may hold anything, and Flower would keep it
            incident = record(failure)
            bug = FedethosError("RUN-973", f"The round loop failed: {type(failure).__name__}, incident {incident.id}.")
            live.end(Problem.of(bug))
            raise bug from None
        live.end()


def _problem(run: str, refusal: FedethosError) -> Problem:
    """What the operator is told. A simulation is resumed by another command than a deployed run."""
    problem = Problem.of(refusal)
    if refusal.code == "RUN-904":
        return problem.model_copy(update={"fix": f"Free some space, then: fedethos server resume {run}"})
    return problem


@contextmanager
def _coordination(run: str, folder: RunFolder, live: LiveFile, prepare: Prepare, node_ids: Mapping[str, int]) -> Iterator[Coordination]:
    quiet_logs()
    started, job = time.monotonic(), load_job(folder.job)
    sites = deployed_sites(job, node_ids)
    with ExitStack() as resources:
        scratch = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="fedethos-")))
        live.stage("Loading the model")
        task = prepare(job, base=Path(folder.read_local().base), scratch=scratch, resources=resources)
        model = task.model
        facts = ModelFacts(
            initial=model.read(), base_sha256=model.base_sha256, weights_sha256=model.base_weights(), device=model.device.type
        )
        if not folder.manifest.exists():
            folder.write_manifest(run_manifest(job, sites.values(), facts, engine=DEPLOYMENT))

        def export(arrays: Arrays, where: Path) -> None:
            model.load(arrays)
            task.save(where)

        live.stage("Setting up the sites")
        yield Coordination(
            job=job,
            run=run,
            folder=folder,
            sites=sites,
            base_sha256=model.base_sha256,
            initial=facts.initial,
            frozen=model.read_frozen(),
            export=export,
            observer=live,
            engine=DEPLOYMENT,
            started=started,
        )


def _places() -> Places:
    state = os.environ.get(STATE_VARIABLE)
    if state is None:
        raise FedethosError(
            "RUN-940",
            "This ServerApp was started without a coordinator.",
            why="It would not know which sites are approved.",
            fix="Start a coordinator with `fedethos server start SERVER_YAML`, or a simulation with `fedethos simulate JOB`.",
        )
    return Places(Path(state))
