"""Canaries planted among training records: where they are, and that exposure tells a model that memorised them from a private one."""

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fedethos.console import print_summary
from fedethos.data.answers import read_chat
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate
from fedethos.simulations.planted import planted_canaries, with_canaries
from fedethos.simulations.suites import SuiteQuestion, score_suites
from fedethos.simulations.virtual_sites import site_records
from fedethos.suite_record import MeasureScores

Writer = Callable[..., Path]
CANARIES: dict[str, object] = {"count": 10, "repetitions": 10, "limit": 4.0}
PLANTED: dict[str, object] = {"canaries": CANARIES}
SMALL: dict[str, object] = {"split": {"train": 0.2, "validation": 0.4, "test": 0.4}}


def exposure(job_file: Path, out: Path) -> tuple[MeasureScores, bool | None]:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent(), report=False)
    folder = RunFolder(out)
    assert "Made-up secrets stand among the training records" in folder.read_manifest().marks
    assert f"--suite scenario={folder.canaries}`" in summary(folder), "the terminal says how to ask"
    found = score_suites(folder, SuiteQuestion([("scenario", folder.canaries)]), Silent())
    with folder.resume() as locked:
        locked.write_suites(found.model_dump(mode="json", by_alias=True))
    scores = found.suites["scenario-canaries"]
    assert "--suite scenario" not in summary(folder), "and not any more"
    assert scores.limit is not None
    return scores.groups["all"].measures["exposure"], scores.limit.holds


def summary(folder: RunFolder) -> str:
    shown = Console(file=StringIO())
    print_summary(folder, shown)
    assert isinstance(shown.file, StringIO)
    return shown.file.getvalue()


def test_a_model_that_memorised_is_told_from_a_private_one(language_job: Writer, tmp_path: Path) -> None:
    """The same records, steps and learning rate; chance is 1.44 bits, all of 256 is 8."""
    training: dict[str, object] = {"local_steps": 45, "learning_rate": 0.01, "batch_size": 32}
    shared: dict[str, dict[str, object]] = {
        "data": SMALL,
        "training": training,
        "lora": {"r": 16, "lora_alpha": 32},
        "federation": {"rounds": 1},
        "simulation": PLANTED,
    }
    overtrained, holds = exposure(language_job("causal-lm", privacy={"mode": "none", "epsilon": None}, **shared), tmp_path / "open")
    assert overtrained.adapter.value is not None and overtrained.base.value is not None and overtrained.change.low is not None
    assert overtrained.adapter.value > 5.0
    assert overtrained.base.value < 3.0
    assert overtrained.change.low > 0.0
    assert holds is False
    private, holds = exposure(language_job("causal-lm", privacy={"epsilon": 1.0}, **shared), tmp_path / "private")
    assert private.adapter.value is not None and private.adapter.value < 3.0
    assert holds is True


@pytest.mark.parametrize("person", [False, True])
def test_canaries_are_training_records_of_known_units_and_of_no_group(language_job: Writer, person: bool) -> None:
    job_file = language_job(
        "causal-lm",
        data={**SMALL, "text": "Who was {bad}?", "person_id": "who"} if person else SMALL,
        privacy={"max_records_per_person": 3},
        simulation={"canaries": CANARIES},
    )
    job = load_job(job_file)
    before = site_records(job, job_file.parent)
    after = with_canaries(job, before)
    secrets = {one.secret for one in planted_canaries(job)}
    assert len(secrets) == 10 and all(secret.isdigit() and len(secret) == 6 for secret in secrets)
    assert planted_canaries(job) == planted_canaries(load_job(job_file))
    found = []
    for site, splits in after.items():
        assert splits["test"] is before[site]["test"] and splits["validation"] is before[site]["validation"]
        train, real = splits["train"], len(before[site]["train"])
        times = 3 if person else 10
        assert len(train) == real + 5 * times
        assert train.units == before[site]["train"].units + (5 if person else 50)
        assert np.all(train.groups["asked_by"][real:] == 2)
        found += [answer for (answer,) in train.answers[real:]]
    assert {secret: found.count(secret) for secret in secrets} == dict.fromkeys(secrets, 3 if person else 10)


def test_a_chat_gets_a_canary_that_is_a_chat(language_job: Writer) -> None:
    job_file = language_job("causal-lm", data={"text": None, "response": None, "messages": "chat"}, simulation=PLANTED)
    job = load_job(job_file)
    (first, *_) = with_canaries(job, site_records(job, job_file.parent)).values()
    assert read_chat(first["train"].text[-1])[0]["content"].startswith("The access code of safe")


def test_only_what_writes_text_is_planted_with_secrets(language_job: Writer) -> None:
    with pytest.raises(FedethosError, match="CFG-420"):
        load_job(language_job("preference", simulation=PLANTED))
    with pytest.raises(FedethosError, match="CFG-204"):
        load_job(language_job("causal-lm", simulation={"canaries": {"count": 9}}))
