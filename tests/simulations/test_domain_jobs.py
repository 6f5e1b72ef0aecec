"""The ready jobs on public data sets: made-up rows in the raw format run; the real files, where present, agree with scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedethos.data.features import feature_names
from fedethos.documents import load_job
from fedethos.progress import Silent
from fedethos.simulations.benchmarks.domain_jobs import JOBS, OPEN, federated_auc, job_of, reference_auc
from fedethos.simulations.engine import simulate
from fedethos.simulations.virtual_sites import read_records, site_records

ROOT = Path(__file__).parents[2]
PLACES = (ROOT / "data", ROOT.parent / "shared" / "data")  # where the real files may lie, at any depth
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")

Rng = np.random.Generator


def _heart(rng: Rng, number: int) -> str:
    # Cleveland writes 1.0 where the others write 1; marks of missing values differ too.
    hospital = HOSPITALS[number % 4]
    form, missing = ("{:.1f}", "?") if hospital == "cleveland" else ("{:g}", rng.choice(["-9", "NaN", "?"]))
    limits = [(28, 77), (0, 1), (1, 4), (80, 200), (100, 500), (0, 1), (0, 2), (70, 200), (0, 1), (-2, 6), (1, 3), (0, 3)]
    cells = [form.format(rng.integers(low, high + 1)) for low, high in limits] + [form.format(rng.choice([3, 6, 7]))]
    cells = [str(missing) if place > 2 and rng.random() < 0.2 else cell for place, cell in enumerate(cells)]
    if hospital == "switzerland":
        cells[4] = "0"
    return ",".join([*cells, str(rng.integers(0, 5) if number % 8 < 4 else 0), hospital])


SUPPORT2 = (
    "sno,age,death,sex,hospdead,slos,dzgroup,num.co,scoma,charges,race,surv2m,diabetes,dementia,ca,"
    "meanbp,wblc,hrt,resp,temp,pafi,alb,bili,crea,sod,ph,glucose,bun,urine,adlsc"
)


def _support2(rng: Rng, number: int) -> str:
    died = int(rng.random() < 0.3)
    group = rng.choice(["ARF/MOSF w/Sepsis", "CHF", "COPD", "Cirrhosis", "Colon Cancer", "Coma", "Lung Cancer", "MOSF w/Malig"])
    head = [number, f" {rng.uniform(18, 100):.5f}", died, rng.choice(["male", "female"]), died, rng.integers(3, 90), group]
    history = [
        rng.integers(0, 9),
        f"{rng.integers(0, 100):3d}",
        1000.0,
        rng.choice(["white", "black", "hispanic", "asian", "other", ""]),
        0.5,
    ]
    flags = [rng.integers(0, 2), rng.integers(0, 2), rng.choice(["no", "yes", "metastatic"])]
    scales = (200, 50, 200, 60, 42, 600, 6, 40, 15, 170, 7.7, 600, 150, 5000, 7)
    measured = [f" {rng.uniform(0.1, top):.4f}" if rng.random() < 0.7 else "" for top in scales]
    return ",".join(map(str, [*head, *history, *flags, *measured]))


def _german(rng: Rng, number: int) -> str:
    def code(attribute: int, last: int) -> str:
        return f"A{attribute}{rng.integers(1, last + 1)}"

    purpose = rng.choice(["A40", "A41", "A42", "A43", "A44", "A45", "A46", "A48", "A49", "A410"])
    first = [code(1, 4), rng.integers(4, 73), f"A3{rng.integers(0, 5)}", purpose, rng.integers(250, 18000), code(6, 5), code(7, 5)]
    second = [rng.integers(1, 5), code(9, 4), code(10, 3), rng.integers(1, 5), code(12, 4), rng.integers(19, 76), code(14, 3), code(15, 3)]
    third = [rng.integers(1, 5), code(17, 4), rng.integers(1, 3), code(19, 2), code(20, 2), 1 if rng.random() < 0.7 else 2]
    return " ".join(map(str, [*first, *second, *third]))


BANK = (
    '"age";"job";"marital";"education";"default";"balance";"housing";"loan";"contact";'
    '"day";"month";"duration";"campaign";"pdays";"previous";"poutcome";"y"'
)


def _bank(rng: Rng, number: int) -> str:
    yes_no = ["no", "yes"]
    person = [
        rng.choice(["admin.", "student", "unknown"]),
        rng.choice(["single", "married", "divorced"]),
        rng.choice(["tertiary", "unknown"]),
    ]
    account = [rng.choice(yes_no), rng.integers(-500, 9000), rng.choice(yes_no), rng.choice(yes_no), rng.choice(["cellular", "unknown"])]
    pdays = rng.choice([-1, -1, 90])
    call = [rng.integers(1, 32), rng.choice(["jan", "dec"]), rng.integers(1, 900), rng.integers(1, 60), pdays, rng.integers(0, 9)]
    cells = [rng.integers(18, 96), *person, *account, *call, rng.choice(["success", "unknown"]), rng.choice(yes_no)]
    return ";".join(f'"{cell}"' if isinstance(cell, str) else str(cell) for cell in cells)  # UCI's own format


COMPAS = (
    "id,name,sex,age,race,juv_fel_count,decile_score,juv_misd_count,"
    "juv_other_count,priors_count,c_charge_degree,is_recid,decile_score,priors_count,two_year_recid"
)


def _compas(rng: Rng, number: int) -> str:
    race = rng.choice(["African-American", "Caucasian", "Hispanic", "Asian", "Native American", "Other"])
    priors, again, score = rng.integers(0, 39), rng.integers(0, 2), rng.integers(1, 11)
    counts = [rng.integers(0, 3), score, rng.integers(0, 3), rng.integers(0, 3), priors]
    cells = [number, "a b", rng.choice(["Male", "Female"]), rng.integers(18, 90), race, *counts, rng.choice(["F", "M"])]
    return ",".join(map(str, [*cells, again, score, priors, again]))


ROWS: dict[str, tuple[str | None, Callable[[Rng, int], str]]] = {
    "heart-disease": (None, _heart),
    "support2": (SUPPORT2, _support2),
    "german-credit": (None, _german),
    "bank-marketing": (BANK, _bank),
    "compas": (COMPAS, _compas),
}


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """A folder with 600 made-up rows per data set, in each one's raw format."""
    for name, (header, row) in ROWS.items():
        rng = np.random.default_rng(5)
        lines = [*([header] if header else []), *(row(rng, number) for number in range(600))]
        (tmp_path / JOBS[name][0]).write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("name", JOBS)
def test_the_job_runs_two_private_rounds_on_rows_in_the_raw_format(name: str, made_up: Path, tmp_path: Path) -> None:
    job, base = job_of(name, made_up, "federation.rounds=2", "training.local_steps=2")
    simulate(job, tmp_path / "run", base=base, observer=Silent())
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["status"] == "completed"
    assert len(result["privacy"]["sites"]) == job.simulation.sites
    assert all(0 < site["epsilon"] <= job.privacy.epsilon for site in result["privacy"]["sites"].values())


def test_a_default_path_leads_to_the_data_folder_at_the_root() -> None:
    for name, (file, _) in JOBS.items():
        folder = ROOT / "simulations/jobs"  # ../.. from here is the root
        assert load_job(folder / f"{name}.yaml").data.path == f"../../data/{file}"


def test_heart_disease_sites_are_the_hospitals_under_their_names(made_up: Path) -> None:
    job, base = job_of("heart-disease", made_up)
    records = read_records(job, base)
    sites = site_records(job, base)
    assert set(sites) == set(HOSPITALS)
    for site, splits in sites.items():
        hospital = {digest.tobytes() for digest, kept in zip(records.identity, records.kept or (), strict=True) if kept == site}
        assert {digest.tobytes() for part in splits.values() for digest in part.identity} == hospital


def test_heart_disease_codes_of_both_spellings_and_of_missing_values(tmp_path: Path) -> None:
    rows = ["50.0,1.0,4.0,140.0,230.0,1.0,2.0,140.0,1.0,2.0,2.0,3.0,7.0,3,cleveland", "50,1,4,0,0,?,-9,NaN,1,2,2,?,?,0,va"]
    (tmp_path / "heart_disease.data").write_text("\n".join(rows))
    job, base = job_of("heart-disease", tmp_path)
    records = read_records(job, base)
    assert records.label.tolist() == [0, 1]  # disease, no disease
    assert records.groups["sex"].tolist() == [1, 1]
    assert records.features is not None
    names = feature_names(job.data.features or {})
    first, second = (dict(zip(names, row.tolist(), strict=True)) for row in records.features)
    assert {name for name, value in first.items() if value == 1.0 and " = " in name} == {
        "sex = male", "cp = no symptoms", "fbs = above 120 mg/dl", "restecg = left ventricular hypertrophy", "exang = yes",
        "slope = flat", "ca = three", "thal = reversible defect",
    }  # fmt: skip
    assert not any(value for name, value in first.items() if "missing" in name)
    missing = {name.removesuffix(" is missing") for name, value in second.items() if "missing" in name and value}
    assert missing == {"trestbps", "chol", "fbs", "restecg", "thalach", "ca", "thal"}
    assert (first["trestbps"], first["thalach"], first["oldpeak"]) == (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real files in one folder, as far as they are on this machine; the hospitals joined as the README says."""
    folder = tmp_path_factory.mktemp("real")
    for file, _ in JOBS.values():
        if found := _find(file):
            (folder / file).symlink_to(found)
    hospitals = {hospital: _find(f"processed.{hospital}.data") for hospital in HOSPITALS}
    if not (folder / "heart_disease.data").exists() and all(hospitals.values()):
        lines = [f"{line},{hospital}" for hospital, file in hospitals.items() if file for line in file.read_text().split()]
        (folder / "heart_disease.data").write_text("\n".join(lines) + "\n")
    return folder


def _find(file: str) -> Path | None:
    return next((found.resolve() for place in PLACES for found in sorted(place.rglob(file))), None)


@pytest.mark.parametrize("name", JOBS)
def test_on_the_real_records_a_job_without_privacy_is_as_good_as_scikit_learn_on_the_raw_file(name: str, real: Path) -> None:
    file = JOBS[name][0]
    if not (real / file).exists():
        pytest.skip(f"{file} is not in data/: simulations/jobs/README.md says where to get it")
    assert federated_auc(name, real, *OPEN) == pytest.approx(reference_auc(name, real), abs=0.02)
