"""A tabular job: what it must say, and what it may not say because it would do nothing."""

from pathlib import Path

import pytest

from fedethos.documents import dump_job, load_job
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.schemas import explain, schema

JOBS = Path(__file__).parents[2] / "simulations/jobs"
TABULAR = JOBS / "adult-tabular.yaml"


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("task=text-classification", "CFG-270"),
        ("data.text='{age}'", "CFG-270"),
        ("data.features=null", "CFG-270"),
        ("model.path=asset:minilm", "CFG-271"),
        ("model.path=builtin:mlp", "CFG-272"),
        ("model.hidden=[8]", "CFG-272"),
        ("data.features.age={low: 3}", "CFG-273"),
        ("data.features.sex=[]", "CFG-274"),
        ("data.features.sex=[Male, Male]", "CFG-274"),
        ("data.features.income=['<=50K']", "CFG-275"),
        ("federation.aggregation=ffa", "CFG-276"),
        ("federation.aggregation=fedex", "CFG-276"),
        ("lora.r=4", "CFG-277"),
        ("model.max_length=64", "CFG-277"),
        ("training.head_learning_rate=0.1", "CFG-277"),
        ("training.cache_frozen_prefix=on", "CFG-277"),
    ],
)
def test_what_does_not_go_together_is_refused(override: str, code: str) -> None:
    with pytest.raises(FedethosError) as error:
        load_job(TABULAR, [override])
    assert error.value.code == code


def test_a_text_job_takes_no_tabular_model() -> None:
    with pytest.raises(FedethosError, match="CFG-271"):
        load_job(JOBS / "adult.yaml", ["model.path=builtin:linear"])


def test_the_job_survives_being_written_with_all_defaults(tmp_path: Path) -> None:
    job = load_job(TABULAR)
    (tmp_path / "job.yaml").write_text(dump_job(job))
    assert load_job(tmp_path / "job.yaml").sha256 == job.sha256
    assert job.aggregation == "fedavg"


def test_the_schema_and_its_words_know_features() -> None:
    assert set(schema(Job)["$defs"]["Numeric"]["properties"]) == {"low", "high", "log", "mean", "scale"}  # type: ignore[index, call-overload]
    assert "log(1 + value)" in explain(Job, "data.features.age.log")
