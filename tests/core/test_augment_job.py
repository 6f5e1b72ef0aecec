"""Jobs that ask for counterfactual copies where none could be made are refused before any record is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedethos.documents import load_job
from fedethos.errors import FedethosError

JOBS = Path(__file__).parents[2] / "simulations" / "jobs"
AUGMENT = "fairness.augment=counterfactual"


def refused(*overrides: str, job: str = "adult.yaml") -> str:
    with pytest.raises(FedethosError) as error:
        load_job(JOBS / job, [AUGMENT, *overrides])
    return error.value.code


def test_without_sensitive_attributes() -> None:
    assert refused("data.sensitive={}", "simulation.partition={kind: iid}") == "CFG-330"


@pytest.mark.parametrize("job", ["adult.yaml", "adult-tabular.yaml"])
def test_with_nothing_to_swap(job: str) -> None:
    assert refused(job=job) == "CFG-331"
    load_job(JOBS / job, [AUGMENT, "fairness.identity_terms=builtin:sex"])


@pytest.mark.parametrize("text", ["{age}, {sex}", "{age}, { race }", "{column: sex}"])
def test_a_sensitive_column_in_the_text_is_enough(text: str) -> None:
    load_job(JOBS / "adult.yaml", [AUGMENT, f"data.text={text}" if text.startswith("{column") else f'data.text="{text}"'])


def test_terms_can_stand_in_the_job_and_are_part_of_its_hash() -> None:
    one, two = (load_job(JOBS / "adult.yaml", [f"fairness.identity_terms={{sex: [[he, {word}]]}}"]) for word in ("she", "they"))
    assert one.fairness.identity_terms == {"sex": [["he", "she"]]}
    assert one.sha256 != two.sha256
