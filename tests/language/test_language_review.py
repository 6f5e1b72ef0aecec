"""What a site reads before it approves a job: the model's tensors, and the time and memory that each language task takes here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedethos.client.anchor import Anchor
from fedethos.client.model_probe import ModelFacts, probe_model
from fedethos.documents import load_job
from fedethos.site import SiteDocument

Writer = Callable[..., Path]


def facts_of(job_file: Path) -> ModelFacts:
    site = SiteDocument.model_validate(
        {
            "name": "north",
            "account": "north",
            "coordinator": {"address": "127.0.0.1:1", "insecure": True},
            "data": {"path": "records.jsonl"},
            "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
            "split_salt": "sixteen characters",
        }
    )
    return probe_model(load_job(job_file), site, job_file.parent, declared_size=60)


@pytest.mark.parametrize("task", ["causal-lm", "multiple-choice", "preference"])
def test_each_task_says_what_it_takes(task: str, language_job: Writer) -> None:
    facts = facts_of(language_job(task))
    assert facts.seconds_per_round > 0.0
    assert facts.memory_bytes > 1 << 20
    assert set(facts.tensors) == {name for name in facts.tensors if "lora_" in name} != set()


def test_the_pull_towards_the_base_counts_too(language_job: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[int] = []
    gradient = Anchor.gradient
    monkeypatch.setattr(Anchor, "gradient", lambda self, step, parameters: (pulled.append(step), gradient(self, step, parameters))[1])
    facts_of(language_job("causal-lm", training={"anchor": {"texts": 8, "tokens": 8}}))
    assert pulled == [0]
