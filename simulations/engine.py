"""``fedethos simulate``: the whole federation in this process, on the same ServerApp and ClientApp as a deployment.

Next on the path: ``simulations/virtual_sites.py`` (who has which records), then ``server/loop.py`` (the rounds).
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, RecordDict

from fedethos.client.app import build_client_app, incidents
from fedethos.documents import dump_job, load_job
from fedethos.errors import FedethosError
from fedethos.flower import quiet_logs
from fedethos.governance.report import render_report
from fedethos.job import Job
from fedethos.models.adapter import read_arrays
from fedethos.models.base import weights_hash
from fedethos.progress import Observer
from fedethos.runfolder import RunFolder
from fedethos.server.app import build_server_app
from fedethos.server.loop import Coordination
from fedethos.simulations.grid import InProcessGrid
from fedethos.simulations.manifest import simulation_manifest
from fedethos.simulations.oracle import Oracle
from fedethos.simulations.virtual_sites import Federation, open_federation

ENGINE = "inprocess"


def simulate(job: Job, out: Path, *, base: Path, observer: Observer, wire: bool = False, force: bool = False) -> Path:
    """Run ``job`` into the new folder ``out`` and render its report.

    Parameters
    ----------
    base : Path
        Folder that relative paths in the job start from.
    wire : bool
        Send every message through Flower's serialisation.
    force : bool
        Replace a run that is already in ``out``.
    """
    with RunFolder(out).create(force=force) as folder:
        folder.write_job(dump_job(job))
        folder.write_local({"base": str(base.resolve()), "wire": wire})
        try:
            _run(job, folder, base=base, wire=wire, observer=observer)
        except FedethosError:
            if not folder.manifest.exists():
                folder.discard()
            raise
    return out


def resume(out: Path, *, observer: Observer) -> Path:
    """Continue a run after its last checkpoint. A seeded run ends with the numbers of an uninterrupted one.

    Raises
    ------
    FedethosError
        RUN-932 when the run is complete.
    """
    with RunFolder(out).resume() as folder:
        if folder.result.exists():
            raise FedethosError("RUN-932", "This run is complete.", where=str(out), fix=f"See it with `fedethos report {out}`.")
        local = folder.read_local()
        _run(load_job(folder.job), folder, base=Path(local.base), wire=local.wire, observer=observer)
    return out


def _run(job: Job, folder: RunFolder, *, base: Path, wire: bool, observer: Observer) -> None:
    quiet_logs()
    started = time.monotonic()
    with (
        _incident_log(folder.incidents),
        tempfile.TemporaryDirectory(prefix="fedethos-") as scratch,
        open_federation(job, base=base, scratch=Path(scratch), ledger=folder.ledger, observer=observer) as federation,
    ):
        base_weights = weights_hash(federation.model.model)
        plan = _coordination(job, folder, federation, observer, started)
        if not folder.manifest.exists():
            folder.write_manifest(simulation_manifest(job, federation, base_weights, engine=ENGINE))
        app = build_client_app(lambda context: federation.nodes[context.node_id])
        build_server_app(plan)(InProcessGrid(app, _contexts(federation), wire=wire), _context(0))
        federation.model.restore_base()
        if weights_hash(federation.model.model) != base_weights:
            raise FedethosError("MODEL-430", "The base model's weights changed during the run.", why="Only the adapter may change.")
    render_report(folder.path)


def _coordination(job: Job, folder: RunFolder, federation: Federation, observer: Observer, started: float) -> Coordination:
    model = federation.model

    return Coordination(
        job=job,
        folder=folder,
        sites=federation.sites,
        base_sha256=model.base_sha256,
        initial=model.read(),
        frozen=read_arrays(model.model, model.frozen_names),
        export=model.save,
        observer=observer,
        engine=ENGINE,
        started=started,
        oracle=Oracle(list(federation.nodes.values())),
    )


def _contexts(federation: Federation) -> dict[int, Context]:
    return {node_id: _context(node_id) for node_id in federation.nodes}


def _context(node_id: int) -> Context:
    return Context(run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


@contextmanager
def _incident_log(path: Path) -> Iterator[None]:
    """Details of refusals stay in one file for its owner; it exists only when something happened."""
    handler = logging.FileHandler(path, delay=True, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    incidents.addHandler(handler)
    incidents.propagate = False
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
        incidents.removeHandler(handler)
        handler.close()
