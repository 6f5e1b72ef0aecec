"""``fedethos simulate``: the whole federation in this process, on the same ServerApp and ClientApp as a deployment.

Next on the path: ``simulations/virtual_sites.py`` (who has which records), then ``server/loop.py`` (the rounds).
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, RecordDict

from fedethos.client.app import build_client_app
from fedethos.client.node import Node
from fedethos.data.records import Records
from fedethos.documents import dump_job, load_job
from fedethos.errors import FedethosError
from fedethos.flower import quiet_logs
from fedethos.governance.report import render_report
from fedethos.job import Job
from fedethos.logs import incident_log
from fedethos.messages import Arrays
from fedethos.progress import Observer
from fedethos.records import Local, SimulatedAttack
from fedethos.runfolder import RunFolder
from fedethos.server.app import build_server_app
from fedethos.server.loop import Coordination
from fedethos.simulations.accounts import ledger_path
from fedethos.simulations.attacks import Scene
from fedethos.simulations.grid import InProcessGrid
from fedethos.simulations.manifest import simulation_manifest
from fedethos.simulations.oracle import Oracle
from fedethos.simulations.planted import canary_scenario
from fedethos.simulations.virtual_sites import Federation, open_federation

ENGINE = "inprocess"


def simulate(
    job: Job,
    out: Path,
    *,
    base: Path,
    observer: Observer,
    wire: bool = False,
    force: bool = False,
    records: Records | None = None,
    attack: SimulatedAttack | None = None,
    report: bool = True,
) -> Path:
    """Run ``job`` into the new folder ``out`` and render its report.

    Parameters
    ----------
    base : Path
        Folder that relative paths in the job start from.
    wire : bool
        Send every message through Flower's serialisation.
    force : bool
        Replace a run that is already in ``out``.
    records : Records, optional
        What ``read_records`` gave for this job's data, so that many seeds read a table once.
    attack : SimulatedAttack, optional
        Some sites attack; exact values are then of the other sites' people.
    report : bool
        Without it the run has no page until ``fedethos report`` renders one, which takes longer than training a small table does.
    """
    with RunFolder(out).create(force=force) as folder:
        folder.write_job(dump_job(job))
        local = Local(base=str(base.resolve()), wire=wire, run=f"{job.name}/{secrets.token_hex(8)}", attack=attack)
        folder.write_local(local.model_dump())
        try:
            _run(job, folder, local, observer, records, report=report)
        except FedethosError:
            if not folder.manifest.exists():
                folder.discard()
            raise
    return out


def resume(out: Path, *, observer: Observer, report: bool = True) -> Path:
    """Continue a run after its last checkpoint. A seeded run ends with the numbers of an uninterrupted one.

    Raises
    ------
    FedethosError
        RUN-932 when the run is complete.
    """
    with RunFolder(out).resume() as folder:
        if folder.result.exists():
            raise FedethosError("RUN-932", "This run is complete.", where=str(out), fix=f"See it with `fedethos report {out}`.")
        _run(load_job(folder.job), folder, folder.read_local(), observer, report=report)
    return out


def _run(job: Job, folder: RunFolder, local: Local, observer: Observer, records: Records | None = None, *, report: bool) -> None:
    quiet_logs()
    started, base = time.monotonic(), Path(local.base)
    ledger = ledger_path(job, base=base, own=folder.ledger)
    scene = Scene(local.attack, job)
    with (
        _owner_only(),
        incident_log(folder.incidents),
        tempfile.TemporaryDirectory(prefix="fedethos-") as scratch,
        open_federation(
            job,
            base=base,
            scratch=Path(scratch),
            ledger=ledger,
            run=local.run,
            observer=observer,
            personal=folder.personal,
            records=records,
            spoil=scene.spoil,
        ) as federation,
    ):
        run_rounds(job, folder, local.run, federation, scene, observer, started, wire=local.wire)
    if report:
        render_report(folder.path)


def run_rounds(
    job: Job, folder: RunFolder, run: str, federation: Federation, scene: Scene, observer: Observer, started: float, *, wire: bool = False
) -> None:
    """All rounds of ``job`` that ``folder`` does not hold yet, on its prepared sites. ``started``: ``time.monotonic()`` at the start."""
    base_weights = federation.model.base_weights()
    plan = _coordination(job, folder, run, federation, observer, started, honest=scene.honest(federation))
    if not folder.manifest.exists():
        folder.write_manifest(simulation_manifest(job, federation, base_weights, engine=ENGINE, marks=scene.marks(federation)))
        if (canaries := canary_scenario(job)) is not None:
            folder.write_canaries(canaries)
    behind = scene.behind(federation)
    app = build_client_app(lambda context: behind[context.node_id])
    build_server_app(plan)(InProcessGrid(app, _contexts(federation), wire=wire), _context(0))
    _export_personal(federation, folder)
    federation.model.restore_base()
    if federation.model.base_weights() != base_weights:
        raise FedethosError("MODEL-430", "The base model's weights changed during the run.", why="Only the adapter may change.")


def _coordination(
    job: Job, folder: RunFolder, run: str, federation: Federation, observer: Observer, started: float, *, honest: Mapping[str, Node]
) -> Coordination:
    model = federation.model

    def export(arrays: Arrays, where: Path) -> None:
        model.load(arrays)
        federation.task.save(where)

    return Coordination(
        job=job,
        run=run,
        folder=folder,
        sites=federation.sites,
        base_sha256=model.base_sha256,
        initial=model.read(),
        frozen=model.read_frozen(),
        export=export,
        observer=observer,
        engine=ENGINE,
        started=started,
        oracle=Oracle(honest),
    )


def _export_personal(federation: Federation, folder: RunFolder) -> None:
    """Beside each site's personal adapter a form of it that can be used; a deployed site does this at home."""
    for node_id, node in federation.nodes.items():
        if node.personal is not None and (arrays := node.personal.at(node.job.federation.rounds)) is not None:
            federation.model.load(arrays)
            federation.task.save(folder.personal / str(node_id) / "adapter")


def _contexts(federation: Federation) -> dict[int, Context]:
    return {node_id: _context(node_id) for node_id in federation.nodes}


def _context(node_id: int) -> Context:
    return Context(run_id=1, node_id=node_id, node_config={}, state=RecordDict(), run_config={})


@contextmanager
def _owner_only() -> Iterator[None]:
    """Files made in here are their owner's alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
