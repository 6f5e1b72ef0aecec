"""The numbers in ``simulations/jobs/README.md``: each job without and with privacy, beside scikit-learn's logistic regression.

    python -m fedethos.simulations.benchmarks.domain_jobs DATA_FOLDER [--seeds 3]

The regression reads the raw files itself, with pandas: codes as they stand, medians for missing numbers, standard scores, all sites
in one table. It shares only the choice of columns and of test people with the job, so a wrong code, range or label direction in a
job shows as a gap between the two. The seed decides which people test, so a mean over seeds is steadier than one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler

from fedethos.documents import load_job
from fedethos.job import Job
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate
from fedethos.simulations.virtual_sites import read_records, site_records

# Per job: its raw file, and which raw labels are good for the person, as the data set's own description says.
JOBS: dict[str, tuple[str, Callable[[str], bool]]] = {
    "heart-disease": ("heart_disease.data", lambda num: float(num) == 0),
    "support2": ("support2.csv", lambda hospdead: hospdead == "0"),
    "german-credit": ("german.data", lambda credit: credit == "1"),
    "bank-marketing": ("bank-full.csv", lambda y: y == "yes"),
    "compas": ("compas-scores-two-years.csv", lambda two_year_recid: two_year_recid == "0"),
}
_MEANS_MISSING = {"chol": 0.0, "trestbps": 0.0, "pdays": -1.0}  # beside NaN, empty and "?"
# Plain gradient descent over all records of a site, near convergence: with many steps of AdamW, sites as different as the hospitals drift.
OPEN = (
    "privacy.mode=none", "privacy.epsilon=null", "training.optimizer=sgd", "training.learning_rate=1.0", "training.batch_size=1000000",
    "training.local_steps=5", "federation.rounds=30",
)  # fmt: skip


def job_of(name: str, data: Path, *overrides: str) -> tuple[Job, Path]:
    """A ready job on the raw file under ``data``, and the job's folder."""
    job_file = Path(str(files("fedethos.simulations.jobs") / f"{name}.yaml"))
    return load_job(job_file, [f"data.path={(data / JOBS[name][0]).resolve()}", *overrides]), job_file.parent


def reference_auc(name: str, data: Path, *overrides: str) -> float:
    """Test AUC of a pooled logistic regression on the raw file, fitted on the job's training people of all sites."""
    job, base = job_of(name, data, *overrides)
    file, is_favorable = JOBS[name]
    raw = pd.read_csv(
        data / file, header=0 if job.data.columns is None else None, names=job.data.columns, sep=None, engine="python", dtype=str
    )
    truth = raw[job.data.label.column].map(is_favorable).to_numpy()
    declared = job.data.features or {}
    numeric = [column for column, kind in declared.items() if not isinstance(kind, list)]
    logs = [column for column in numeric if getattr(declared[column], "log", False)]
    codes = [column for column in declared if column not in numeric]
    for column in numeric:
        values = pd.to_numeric(raw[column].replace("?", None))
        raw[column] = values.mask(values == _MEANS_MISSING.get(column, np.nan))
    plain = [column for column in numeric if column not in logs]
    encoder = ColumnTransformer(
        [
            ("plain", make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()), plain),
            ("logs", make_pipeline(FunctionTransformer(np.log1p), SimpleImputer(add_indicator=True), StandardScaler()), logs),
            ("codes", OneHotEncoder(handle_unknown="ignore"), codes),
        ]
    )
    identity = [digest.tobytes() for digest in read_records(job, base).identity]
    splits = site_records(job, base).values()
    member = {
        split: np.isin(identity, [digest.tobytes() for one in splits for digest in one[split].identity]) for split in ("train", "test")
    }
    model = make_pipeline(encoder, LogisticRegression(max_iter=5000)).fit(raw[member["train"]], truth[member["train"]])
    return float(roc_auc_score(truth[member["test"]], model.predict_proba(raw[member["test"]])[:, 1]))


def federated_auc(name: str, data: Path, *overrides: str) -> float:
    """Exact test AUC of a run of the job, which only a simulation knows: no noise, no bins."""
    job, base = job_of(name, data, *overrides)
    with tempfile.TemporaryDirectory() as folder:
        simulate(job, Path(folder) / "run", base=base, observer=Silent())
        oracle = RunFolder(Path(folder) / "run").read_result().oracle
    if oracle is None or oracle.metrics.roc_auc is None:
        raise ValueError("a simulation with both labels among its test people has an exact AUC")
    return oracle.metrics.roc_auc


def main() -> None:
    """One line per job: mean (range) of the test AUC over seeds."""
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.domain_jobs", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with the raw files")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 7, 8, …")
    parser.add_argument("--only", choices=JOBS, help="one job")
    arguments = parser.parse_args()
    print("| job | scikit-learn, pooled | federated, no privacy | federated, private |\n|---|---|---|---|")
    for name in [arguments.only] if arguments.only else JOBS:
        seeds = [f"simulation.seed={7 + number}" for number in range(arguments.seeds)]
        columns = (
            [reference_auc(name, arguments.data, seed) for seed in seeds],
            [federated_auc(name, arguments.data, seed, *OPEN) for seed in seeds],
            [federated_auc(name, arguments.data, seed) for seed in seeds],
        )
        print(f"| {name} | {' | '.join(_summary(column) for column in columns)} |", flush=True)


def _summary(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    main()
