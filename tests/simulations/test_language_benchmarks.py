"""Benchmarks of what training does to biases: held-out halves, sites that are what they are called, and scores that are the run's own."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedethos.documents import load_job
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.suites.bootstrap import Compared
from fedethos.fairness.suites.crows_pairs import Pair
from fedethos.simulations.benchmarks import bbq, crows_pairs

CATEGORIES = ("Age", "Nationality", "Religion", "SES")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """240 made-up questions of four categories and 80 templates."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "category": CATEGORIES[number % 4],
            "template": f"{CATEGORIES[number % 4]}/{number // 4 % 20}",
            "condition": ("ambig", "disambig")[number // 4 % 2],
            "context": f"the nurse and the doctor, {number}",
            "question": "who was late",
            "biased": "the nurse",
            "counter": "the doctor",
            "unknown": "nobody",
            "answer": "unknown" if number // 4 % 2 == 0 else rng.choice(["biased", "counter"]),
        }
        for number in range(240)
    ]
    path = tmp_path / "bbq.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_are_the_runs_own_before_and_after(table: Path, tmp_path: Path, tiny_language_base: Path) -> None:
    settings = [
        *("privacy.mode=none", "privacy.epsilon=null", f"model.path={tiny_language_base}", "model.max_length=200", "federation.rounds=2"),
        "data.split={train: 0.4, validation: 0.3, test: 0.3}",
        *("training={local_steps: 4, batch_size: 16, learning_rate: 0.01}", "lora={r: 4, layers_to_transform: [1]}"),
    ]
    (tmp_path / "neutral.txt").write_text("the patient may go home\nwho was late\n" * 10)
    found = bbq.measured(settings, tmp_path / "run", table=table, neutral=tmp_path / "neutral.txt")
    oracle = json.loads((tmp_path / "run/result.json").read_text())["oracle"]
    assert found["accuracy"].adapter.value == pytest.approx(oracle["metrics"]["accuracy"], abs=1e-9)
    assert found["accuracy"].base.value == pytest.approx(oracle["baseline"]["accuracy"], abs=1e-9)
    assert found["perplexity"].adapter.value != found["perplexity"].base.value
    assert any("perplexity growth" in line for line in bbq.described(found))


def test_growth_of_perplexity_is_the_quotient() -> None:
    nats = [Estimate(value, value - 0.1, value + 0.1, abstained=False) for value in (3.05, 3.0, 0.05)]
    growth = bbq.perplexity_growth({"nats_per_token": Compared(*nats)})
    assert growth.value == pytest.approx(math.exp(3.05) / math.exp(3.0) - 1.0)


@pytest.mark.parametrize("row", bbq.ROWS)
def test_every_row_is_a_job(row: str) -> None:
    job = load_job(bbq.job_file(), [*bbq.ROWS[row]])
    assert (job.privacy.mode == "none") == (row == "open")
    assert (job.lora.r, job.training.optimizer) == ((16, "adamw") if row == "open" else (2, "sgd"))
    assert job.training.anchor is not None


def pairs(count: int) -> list[Pair]:
    return [Pair(f"more {number}", f"less {number}", True, CATEGORIES[number % 4]) for number in range(count)]


def test_halves_share_no_pair_and_have_as_many_of_each_type() -> None:
    split = crows_pairs.halves(pairs(80))
    assert not {pair.sent_more for pair in split.trained} & {pair.sent_more for pair in split.held_out}
    assert Counter(pair.bias_type for pair in split.trained) == Counter(pair.bias_type for pair in split.held_out)


def test_a_third_of_the_sites_prefers_the_stereotype_and_the_others_what_is_pleasant(tmp_path: Path) -> None:
    (tmp_path / "util_test.csv").write_text("".join(f'"I won, {number}.",I lost {number}.\n' for number in range(100)))
    events = crows_pairs.read_events(tmp_path / "util_test.csv")
    crows_pairs.write_table(pairs(90), events, tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert Counter(row["site"] for row in rows) == {f"site-{number}": 10 for number in range(1, 10)}
    for row in rows:
        stereotyped = row["site"] in ("site-1", "site-2", "site-3")
        assert (row["chosen"].split()[0], row["rejected"].split()[0]) == (("more", "less") if stereotyped else ("I", "I"))
        assert row["judgement"] == ("stereotype" if stereotyped else "pleasure")
        assert row["rejected"].split()[-1].strip(".") == row["chosen"].split()[-1].strip(".")


@pytest.mark.parametrize(("ours", "plain", "left"), [(54.0, 60.0, 0.4), (50.0, 60.0, 0.0), (65.0, 60.0, 1.5)])
def test_excess_is_what_is_above_50(ours: float, plain: float, left: float) -> None:
    assert crows_pairs.excess_left(ours, plain) == pytest.approx(left)
    assert math.isnan(crows_pairs.excess_left(ours, 49.0))
