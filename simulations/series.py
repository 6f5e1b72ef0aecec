"""Several jobs on the same prepared sites: model, records and cached layers are made ready once, then the jobs run one after the other.

For comparisons of strategies on texts, where preparing takes longer than training. Each job gets the run folder that ``simulate`` would
have written, and its own ledger in it, but no page (``fedethos report`` renders one).
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from fedethos.documents import dump_job
from fedethos.flower import quiet_logs
from fedethos.job import Job
from fedethos.messages import Arrays
from fedethos.progress import Observer
from fedethos.records import Local
from fedethos.runfolder import RunFolder
from fedethos.simulations.accounts import committed_plans
from fedethos.simulations.attacks import Scene
from fedethos.simulations.engine import run_rounds
from fedethos.simulations.virtual_sites import Federation, open_federation

_OWN: dict[str, set[str] | bool] = {
    "fairness": {"strategy", "constraint", "attribute", "every", "learning_rate", "max_weight"},
    "privacy": {"epsilon", "metrics"},
    "robustness": True,
}


def simulate_series(jobs: Mapping[Path, Job], *, base: Path, observer: Observer) -> None:
    """Run each job into its folder; one that holds a finished run is passed over, what was begun is begun again.

    Raises
    ------
    ValueError
        When the jobs differ in more than the strategy of ``fairness``, ``robustness``, and ``privacy.epsilon`` and ``metrics``.
    """
    missing = {out: job for out, job in jobs.items() if not RunFolder(out).result.exists()}
    if not missing:
        return
    first, *others = missing.values()
    if any(_shared(job) != _shared(first) for job in others):
        raise ValueError("jobs of a series differ only in the strategy, in robustness and in what privacy costs")
    quiet_logs()
    with (
        tempfile.TemporaryDirectory(prefix="fedethos-") as scratch,
        open_federation(first, base=base, scratch=Path(scratch), ledger=Path(scratch) / "ledger.sqlite", observer=observer) as federation,
    ):
        start = federation.model.read()
        for out, job in missing.items():
            _run(job, out, federation, start, base, observer)


def _run(job: Job, out: Path, federation: Federation, start: Arrays, base: Path, observer: Observer) -> None:
    started = time.monotonic()
    with RunFolder(out).create(force=True) as folder, ExitStack() as resources:
        local = Local(base=str(base.resolve()), wire=False, run=f"{job.name}/{secrets.token_hex(8)}", attack=None)
        folder.write_job(dump_job(job))
        folder.write_local(local.model_dump())
        sizes = {site.name: site.declared_size for site in federation.sites.values()}
        plans = committed_plans(job, sizes, folder.ledger, local.run, resources)
        nodes = {
            number: replace(node, job=job, ledger=plans.get(federation.sites[number].name)) for number, node in federation.nodes.items()
        }
        federation.model.load(start)
        run_rounds(job, folder, local.run, replace(federation, nodes=nodes), Scene(None, job), observer, started)


def _shared(job: Job) -> dict[str, object]:
    return job.model_dump(exclude=_OWN)
