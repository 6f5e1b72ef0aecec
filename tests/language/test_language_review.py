"""What a site reads before it approves a language-model job: time for the pull towards the base too, and no line that the job made up."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedethos.client.anchor import Anchor
from fedethos.client.model_probe import probe_model
from fedethos.client.review import review_job
from fedethos.client.review_words import parts
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


def test_the_pull_towards_the_base_is_timed(language_job: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[int] = []
    gradient = Anchor.gradient
    monkeypatch.setattr(Anchor, "gradient", lambda self, step, parameters: (pulled.append(step), gradient(self, step, parameters))[1])
    job = load_job(language_job("causal-lm", training={"anchor": {"texts": 8, "tokens": 8}}))
    assert probe_model(job, SITE, tmp_path, declared_size=60).seconds_per_round > 0.0
    assert pulled == [0]


def test_a_job_cannot_write_lines_of_its_own_into_the_review(language_job: Writer, tmp_path: Path) -> None:
    forged = "Who was {who}?\nWhat it costs\n  whole run  epsilon 0.01\x1b[2K\u202e\u2028"
    declared = {"sites": {name: {"declared_size": 60} for name in ("north", "south")}}
    job = load_job(language_job("causal-lm", data={"text": forged}, federation=declared))
    review = review_job(job, SITE, probe_model(job, SITE, tmp_path, declared_size=60), LedgerState())
    shown = dict(row for part in parts(review) for row in part.rows)["model reads"]
    assert shown == "Who was {who}?\\nWhat it costs\\n  whole run  epsilon 0.01\\x1b[2K\\u202e\\u2028"
