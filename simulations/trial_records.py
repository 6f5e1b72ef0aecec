"""Records and a job for ``fedethos keys trial``: the built-in Adult table dealt to the sites, so that a trial runs as it is."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np

from fedethos import yamltext
from fedethos.data.readers import read_table
from fedethos.documents import dump_job, load_job
from fedethos.job import Job

RECORDS, JOB = "data.csv", "job.yaml"
_ROUND_SIZE_TO = 100


def write_trial_records(folder: Path, sites: Sequence[str], *, seed: int = 7, rounds: int = 5) -> None:
    """Write ``folder/SITE/data.csv`` for each site and ``folder/job.yaml``, which every site may review and approve.

    The people of the ready job ``adult-tabular`` are dealt at random; declared sizes are the expected training people, rounded up to 100.
    """
    with as_file(files("fedethos.simulations.jobs") / "adult-tabular.yaml") as path:
        example = load_job(path)
    table = read_table(example.data, base=folder)
    dealt = np.array_split(np.random.default_rng(seed).permutation(len(table)), len(sites))
    sizes = {}
    for site, rows in zip(sites, dealt, strict=True):
        table.iloc[np.sort(rows)].to_csv(folder / site / RECORDS, index=False)
        sizes[site] = -(-round(len(rows) * example.data.split.train) // _ROUND_SIZE_TO) * _ROUND_SIZE_TO
    document = yamltext.parse(dump_job(example)).data
    if not isinstance(document, dict):
        raise TypeError("a job is a mapping")
    job = Job.model_validate(
        {
            **document,
            "name": "trial",
            "data": {**example.data.model_dump(mode="json"), "path": RECORDS},
            "federation": {
                **example.federation.model_dump(mode="json"),
                "rounds": rounds,
                "min_sites": min(len(sites), example.federation.min_sites),
                "sites": {site: {"weight": float(size), "declared_size": size} for site, size in sizes.items()},
            },
            "simulation": {},
        }
    )
    (folder / JOB).write_text(dump_job(job), encoding="utf-8")
