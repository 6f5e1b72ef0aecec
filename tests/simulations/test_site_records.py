"""Which records the virtual sites get."""

from pathlib import Path

import pandas as pd
import pytest

from fedethos.documents import load_job
from fedethos.simulations.virtual_sites import site_records

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
