"""A real site's node: its own file, its own raw values and salt, its own copy of the base model; the same numbers as a virtual site's."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedethos.client.site_node import open_site_node
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Request
from fedethos.models.content import content_hash
from fedethos.privacy.randomness import SecureSource
from fedethos.progress import Silent
from fedethos.simulations.virtual_sites import open_federation, read_records
from fedethos.site import SiteDocument

SIZES = {"federation": {"sites": {name: {"declared_size": 300} for name in ("site-1", "site-2", "site-3")}}}
OPEN = {"privacy": {"mode": "none", "epsilon": None, "secure_rng": False}}

RUN = "small-0123abcd"


def site(**changes: object) -> SiteDocument:
    document = {
        "name": "site-2",
        "account": "people",
        "coordinator": {"address": "127.0.0.1:9", "insecure": True},
        "data": {"path": "export.csv"},
        "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
        "split_salt": "0123456789abcdef",
        **changes,
    }
    return SiteDocument.model_validate(document)


def request(job: Job, arrays: dict[str, np.ndarray], round: int) -> Request:
    return Request(job_sha256=job.sha256, run="small-0123abcd", round=round, attempt=0, arrays=arrays)


def test_the_site_names_its_file_its_values_its_salt_and_its_model(
    write_job: Callable[..., Path], adult_rows: Path, tmp_path: Path
) -> None:
    job = load_job(write_job(**SIZES))
    table = pd.read_csv(adult_rows)
    table["sex"] = table["sex"].str.strip().map({"Female": "w", "Male": "m"})
    table.to_csv(tmp_path / "export.csv", index=False)
    shutil.copytree(job.model.path, tmp_path / "model")
    here = site(data={"path": "export.csv", "map": {"sex": {"w": "Female", "m": "Male"}}}, model="model")
    elsewhere = job.model_copy(
        update={"model": job.model.model_copy(update={"path": "/not/here", "sha256": content_hash(tmp_path / "model")})}
    )
    with open_site_node(elsewhere, here, tmp_path, RUN) as node:
        assert node.model.base_sha256 == content_hash(tmp_path / "model")
        assert node.job.sha256 == elsewhere.sha256 and node.declared_size == 300 and node.ledger is None
        assert isinstance(node.source_of(1, 0), SecureSource)
        groups = np.concatenate([examples.groups["sex"] for examples in node.examples.values()])
        assert np.bincount(groups, minlength=3).tolist() == [(table["sex"] == "w").sum(), (table["sex"] == "m").sum(), 0]


def test_a_round_at_a_real_site_is_that_of_a_virtual_one(write_job: Callable[..., Path], adult_rows: Path, tmp_path: Path) -> None:
    """Same people, same salt, seeded: the same update and the same counts, to the bit."""
    job = load_job(write_job(**SIZES, **OPEN, data={"split_salt": "0123456789abcdef"}))
    whole = pd.read_csv(adult_rows, dtype=str, keep_default_na=False)
    with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "l", observer=Silent()) as federation:
        virtual = next(node for node_id, node in federation.nodes.items() if federation.sites[node_id].name == "site-2")
        start = virtual.model.read()
        theirs = virtual.train(request(job, start, 1)).arrays
        rows = _rows_of_site(job, tmp_path)
    whole.iloc[rows].to_csv(tmp_path / "export.csv", index=False)
    with open_site_node(job, site(allow_unprotected=True), tmp_path, RUN) as node:
        ours = node.train(request(job, start, 1)).arrays
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def _rows_of_site(job: Job, base: Path) -> np.ndarray:
    from fedethos.simulations.partition import partition

    records = read_records(job, base)
    parts = partition(
        records,
        job.simulation.partition,
        sites=3,
        seed=job.simulation.seed,
        label_values=job.data.label.values,
        categories=job.data.sensitive,
        draw=0,
    )
    return np.asarray(parts[1])


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"name": "nobody"}, "SEC-615"), ({"data": {"path": "export.csv", "removed": "gone.txt"}}, "DATA-125")],
)
def test_what_does_not_fit_is_refused(write_job: Callable[..., Path], adult_rows: Path, tmp_path: Path, changes, code: str) -> None:
    shutil.copy(adult_rows, tmp_path / "export.csv")
    with pytest.raises(FedethosError, match=code), open_site_node(load_job(write_job(**SIZES)), site(**changes), tmp_path, RUN):
        pass
