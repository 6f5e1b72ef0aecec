"""What a site reads before it approves a job: the model's tensors, and the time and memory that each language task takes here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedethos.client.anchor import Anchor
from fedethos.client.model_probe import ModelFacts, probe_model
from fedethos.client.review import review_job
from fedethos.documents import load_job
from fedethos.privacy.ledger_state import LedgerState
from fedethos.site import SiteDocument

Writer = Callable[..., Path]


SITE = SiteDocument.model_validate(
    {
        "name": "north",
        "account": "north",
        "coordinator": {"address": "127.0.0.1:1", "insecure": True},
        "data": {"path": "records.jsonl"},
        "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
        "split_salt": "sixteen characters",
    }
)


def facts_of(job_file: Path) -> ModelFacts:
    return probe_model(load_job(job_file), SITE, job_file.parent, declared_size=60)


READS: dict[str, set[tuple[str, str]]] = {
    "causal-lm": {("model writes", "the {answer}")},
    "multiple-choice": {("chooses among", "{a}; {b}; nobody"), ("label", "right: first, second, neither")},
    "preference": {("prefers", "{good} of all"), ("to", "{bad}")},
}


@pytest.mark.parametrize("task", list(READS))
def test_each_task_says_what_it_takes(task: str, language_job: Writer) -> None:
    declared = {"sites": {name: {"declared_size": 60} for name in ("north", "south")}}
    path = language_job(task, federation=declared)
    facts = facts_of(path)
    assert facts.seconds_per_round > 0.0
    assert facts.memory_bytes > 1 << 20
    assert set(facts.tensors) == {name for name in facts.tensors if "lora_" in name} != set()
    reads = set(review_job(load_job(path), SITE, facts, LedgerState()).reads)
    assert reads >= READS[task] | {("model reads", "Who was {who}?")}
    assert not any("None" in words for _, words in reads)


def test_the_pull_towards_the_base_counts_too(language_job: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[int] = []
    gradient = Anchor.gradient
    monkeypatch.setattr(Anchor, "gradient", lambda self, step, parameters: (pulled.append(step), gradient(self, step, parameters))[1])
    facts_of(language_job("causal-lm", training={"anchor": {"texts": 8, "tokens": 8}}))
    assert pulled == [0]
