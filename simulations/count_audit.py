"""The released test counts of a run beside the exact ones, which only a simulation has: is the difference the noise that was paid for?

Next on the path: ``check_counts`` in ``privacy/conformance.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedethos.client.evaluator import lay_out, predict
from fedethos.client.node import Node
from fedethos.client.release import stored_counts
from fedethos.errors import FedethosError
from fedethos.fairness.layout import FINE, SCORES, Layout, score_cuts
from fedethos.fairness.responses import known_cuts
from fedethos.job import Job
from fedethos.messages import Tables
from fedethos.privacy.conformance import Check, check_counts
from fedethos.privacy.counts import plan_counts
from fedethos.privacy.events import purpose_of
from fedethos.privacy.ledger import Ledger
from fedethos.progress import Observer
from fedethos.runfolder import RunFolder
from fedethos.server.checkpoint import latest_checkpoint


def check_released_counts(job: Job, folder: RunFolder, ledger: Path, node: Node, site: str, observer: Observer) -> Check:
    """Compare what ``site`` released about its test people with their exact counts under the final adapter.

    Raises
    ------
    FedethosError
        PRIV-358 when the run's ledger or last checkpoint is gone, or has no test counts of this site.
    """
    last = folder.read_result().rounds
    final = latest_checkpoint(folder.checkpoints, say=observer.stage)
    validation = _replies(job, folder, ledger, purpose_of(Layout(cuts=FINE).wanted, "validation"), last)
    edge = folder.read_fairness().threshold.edge_index
    pooled = job.fairness.thresholds == "pooled"
    if final is None or final.round != last or edge is None or (pooled and not validation):
        raise _gone(folder)
    layout = Layout(score_cuts(np.sum([one[SCORES] for one in validation.values()], axis=0)) if pooled else known_cuts(job), edge)
    released = _replies(job, folder, ledger, purpose_of(layout.wanted, "test"), last).get(site)
    if released is None:
        raise _gone(folder)
    node.model.load(dict(final.arrays))
    examples = node.examples["test"]
    predictions = predict(node.model, examples, job.data.label.favorable_index)
    exact = lay_out(predictions, examples, job, layout)
    noise = np.concatenate([(released[name] - table).ravel() for name, table in exact.items()])
    planned = next(one.release for one in plan_counts(job, rows_per_unit=job.rows_per_unit) if one.population == "test")
    return check_counts(noise, sigma=planned.sigma)


def _replies(job: Job, folder: RunFolder, path: Path, purpose: str, round: int) -> Mapping[str, Tables]:
    """The stored counts of every site that released them."""
    if not path.is_file():
        raise _gone(folder)
    run, found = folder.read_local().run, {}
    with Ledger(path) as ledger:
        for name, account in ledger.accounts.items():
            state = account.find(job.sha256, run)
            stored = ledger.commit(state.plan).stored_reply(purpose, round) if state else None  # committed already: this charges nothing
            if stored is not None:
                found[name] = stored_counts(stored).tables
    return found


def _gone(folder: RunFolder) -> FedethosError:
    return FedethosError(
        "PRIV-358",
        "The run's ledger or last checkpoint is not there any more, or has no test counts of the audited site.",
        where=str(folder.path),
        why="Whether the released counts carry the noise that was paid for cannot be checked without them.",
        fix="Restore the files from a copy, or run the job again.",
    )
