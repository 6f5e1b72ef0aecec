"""The time that a review announces covers the pull towards the base model too."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedethos.client.anchor import Anchor
from fedethos.client.model_probe import probe_model
from fedethos.documents import load_job
from fedethos.site import SiteDocument

Writer = Callable[..., Path]


def test_the_pull_towards_the_base_is_timed(language_job: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    pulled: list[int] = []
    gradient = Anchor.gradient
    monkeypatch.setattr(Anchor, "gradient", lambda self, step, parameters: (pulled.append(step), gradient(self, step, parameters))[1])
    job = load_job(language_job("causal-lm", training={"anchor": {"texts": 8, "tokens": 8}}))
    assert probe_model(job, site, tmp_path, declared_size=60).seconds_per_round > 0.0
    assert pulled == [0]
