"""A real site's ``Node``: its own records, its own split salt, and noise from the operating system.

Opening it reads the records but releases nothing; the ledger plan comes with the first request that does (``client/worker.py``).
Next on the path: ``client/node.py``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fedethos.client.node import Node
from fedethos.client.personal import PersonalAdapter
from fedethos.client.site_records import checked_task, make_examples, random_sources, read_records, split_site
from fedethos.client.spending import declared_size
from fedethos.data.removal import read_removed, without_removed
from fedethos.job import Job
from fedethos.site import SiteDocument

log = logging.getLogger(__name__)


@contextmanager
def open_site_node(job: Job, site: SiteDocument, folder: Path, run: str) -> Iterator[Node]:
    """The node of ``site`` for ``run`` of ``job``, without a ledger plan. Its temporary files go when it is left.

    Parameters
    ----------
    job : Job
        As approved.
    folder : Path
        Where relative paths in site.yaml start from.

    Raises
    ------
    FedethosError
        DATA-… when the records do not follow the contract, MODEL-… and SEC-60… when the base model is not the job's, PRIV-328 when the
        clipping engine fails its check, SEC-615 and CFG-231 as ``spending.declared_size``.
    """
    name, _ = site.as_node()
    size, here = declared_size(job, name), site.local(job)
    with ExitStack() as resources:
        scratch = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="fedethos-")))
        task = checked_task(here, base=folder, scratch=scratch, resources=resources, say=log.info)
        records = read_records(here, folder)
        if site.data.removed is not None:
            records = without_removed(records, read_removed(folder / site.data.removed), by_person=job.data.person_id is not None)
        log.info("Preparing the records")
        yield Node(
            job=job,
            model=task.model,
            examples=make_examples(here, task, split_site(here, records, site.split_salt)),
            declared_size=size,
            ledger=None,
            source_of=random_sources(job, name, secure=job.privacy.secure_rng is not False),
            rank=job.federation.sites[name].rank,
            personal=PersonalAdapter(folder / site.state / "personal" / run) if job.training.personal else None,
            anchor=task.anchor,
        )
