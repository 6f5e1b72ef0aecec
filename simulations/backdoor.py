"""How often a backdoor works: the trigger on honest people's records, judged by the final adapter of a run.

Success is the favorable label for a person whose true label is another one, at the run's own threshold. Without a backdoor this is the
false-positive rate of records that carry the trigger.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedethos.client.evaluator import predict
from fedethos.fairness.histograms import EDGES
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.progress import Observer
from fedethos.runfolder import RunFolder
from fedethos.simulations.attacks import triggered
from fedethos.simulations.evaluate import load_exported
from fedethos.simulations.virtual_sites import SiteRecords, open_federation


def success_rate(job: Job, run: Path, attackers: frozenset[str], *, base: Path, observer: Observer) -> float | None:
    """Share of the honest sites' unfavorable test people that the finished ``run`` judges favorably once they carry the trigger."""
    folder = RunFolder(run)
    edge = folder.read_fairness().threshold.edge_index
    threshold = EDGES[FIXED_EDGE if edge is None else edge]
    favorable = job.data.label.favorable_index

    def honest_targets(by_site: SiteRecords) -> SiteRecords:
        tests = {name: splits["test"] for name, splits in by_site.items()}
        marked = {name: triggered(test, np.full(len(test), True), job.data.features) for name, test in tests.items()}
        return {name: {**splits, "test": marked[name]} for name, splits in by_site.items()}

    with (
        tempfile.TemporaryDirectory(prefix="fedethos-") as scratch,
        open_federation(
            _unpaid(job), base=base, scratch=Path(scratch), ledger=Path(scratch) / "none", observer=observer, spoil=honest_targets
        ) as opened,
    ):
        load_exported(folder.adapter, opened.model, job.aggregation)
        judged = []
        for node_id, node in opened.nodes.items():
            if opened.sites[node_id].name not in attackers:
                examples = node.examples["test"]
                margin = predict(opened.model, examples, favorable).margin  # of several labels the threshold is 0: which is predicted
                judged.append(margin[examples.label != favorable] >= threshold)
    everybody = np.concatenate(judged)
    return float(everybody.mean()) if len(everybody) else None


def _unpaid(job: Job) -> Job:
    """The same adapter without privacy: nothing is released here, so nothing is planned or charged."""
    changes: Mapping[str, object] = {"privacy": job.privacy.model_copy(update={"mode": "none"})}
    return job.model_copy(update={**changes, "federation": job.federation.model_copy(update={"aggregation": job.aggregation})})
