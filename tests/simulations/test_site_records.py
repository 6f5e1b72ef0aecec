"""Which records the virtual sites get."""

from pathlib import Path

import pandas as pd
import pytest

from fedethos.client import text_classification
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.progress import Silent
from fedethos.simulations.virtual_sites import open_federation, site_records

ROWS_EACH = 10


@pytest.mark.parametrize(("privacy", "most"), [({}, 1), ({"mode": "none", "epsilon": None}, ROWS_EACH)])
def test_the_bound_on_records_per_person_drops_none_without_privacy(write_job, adult_rows: Path, tmp_path: Path, privacy, most) -> None:
    table = pd.read_csv(adult_rows)
    table["person"] = [f"p{row // ROWS_EACH}" for row in range(len(table))]
    table.to_csv(tmp_path / "people.csv", index=False)
    job_file = write_job(
        data={"path": str(tmp_path / "people.csv"), "person_id": "person"},
        privacy={"max_records_per_person": 1, **privacy},
        simulation={"partition": {"kind": "iid"}},
    )
    parts = [part for splits in site_records(load_job(job_file), tmp_path).values() for part in splits.values()]
    assert sum(len(part) for part in parts) == len(table) // ROWS_EACH * most
    assert sum(part.units for part in parts) == len(table) // ROWS_EACH


def test_one_site_is_opened_without_the_others(write_job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, tokenized, tokenize = load_job(write_job()), [], text_classification.tokenize

    def count(texts, *arguments):
        tokenized.extend(texts)
        return tokenize(texts, *arguments)

    monkeypatch.setattr(text_classification, "tokenize", count)
    own = site_records(job, tmp_path)["site-2"]
    with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "ledger.sqlite", observer=Silent(), only=2) as federation:
        assert [site.name for site in federation.sites.values()] == ["site-1", "site-2", "site-3"]
        assert set(federation.nodes) == {2}
        assert len(federation.nodes[2].examples["train"]) == len(own["train"])
    assert sorted(tokenized) == sorted(text for part in own.values() for text in part.text)


def test_people_are_dealt_again_until_every_site_has_each_label(write_job, tmp_path: Path) -> None:
    plan = {"kind": "dirichlet", "by": "label", "alpha": 0.1}
    for seed in range(20):
        job = load_job(write_job(simulation={"partition": plan, "seed": seed}))
        try:
            site_records(job, tmp_path)
        except FedethosError as error:
            assert error.code in ("DATA-135", "DATA-136")
            break
    else:
        raise AssertionError("no seed leaves a site without a label")
    redrawn = load_job(write_job(simulation={"partition": {**plan, "redraw": True}, "seed": seed}))
    by_site = site_records(redrawn, tmp_path)
    assert all(set(splits["train"].label) == {0, 1} for splits in by_site.values())
    again = site_records(redrawn, tmp_path)
    assert all((by_site[site]["train"].identity == again[site]["train"].identity).all() for site in by_site)
