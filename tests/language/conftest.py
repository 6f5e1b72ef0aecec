"""Small jobs of the three language tasks on a tiny random Llama, with records made here."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedethos.documents import load_job
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate

WORDS = ("home", "late", "nurse", "doctor", "patient", "today")

TASKS: dict[str, dict[str, object]] = {
    "causal-lm": {"text": "Who was {who}?", "response": "the {answer}"},
    "multiple-choice": {
        "text": "Who was {who}?",
        "choices": {"first": "{a}", "second": "{b}", "neither": "nobody"},
        "label": {"column": "right", "values": ["first", "second", "neither"], "favorable": "first"},
    },
    "preference": {"text": "Who was {who}?", "chosen": "{good} of all", "rejected": "{bad}"},
}

LanguageJob = Callable[..., Path]


def questions() -> list[dict[str, object]]:
    """120 records: a question, answers, who asks, and a chat. Home is right where it is offered, else nobody."""
    rows: list[dict[str, object]] = []
    for number in range(120):
        good, bad = "home", WORDS[1 + number // 3 % 5]
        first, second = ((good, bad), (bad, good), (bad, WORDS[1 + number // 15 % 5]))[number % 3]
        rows.append(
            {
                "who": f"{bad} {number}",
                "a": first,
                "b": second,
                "good": good,
                "bad": bad,
                "answer": "doctor" if number % 3 == 0 else "nurse",
                "right": ("first", "second", "neither")[number % 3],
                "asked_by": ("woman", "man")[number // 3 % 2],
                "options": [first, second] if number % 3 < 2 else [first, second, "nobody"],
                "index": str(number % 3),
                "chat": [{"role": "user", "content": f"Who was {bad}?"}, {"role": "assistant", "content": f"the {bad}"}],
            }
        )
    return rows


@pytest.fixture(scope="session")
def language_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``questions`` as a file."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in questions()))
    return path


def job_text(base: Path, rows: Path, task: str, **sections: dict[str, object]) -> str:
    """A job of two sites; a keyword replaces keys of that section."""
    job: dict[str, dict[str, object] | str] = {
        "schema": "fedethos/job/v1",
        "name": "small",
        "task": task,
        "model": {"path": str(base), "max_length": 64},
        "lora": {"r": 4},
        "data": {
            "path": str(rows),
            **TASKS[task],
            "sensitive": {"asked_by": ["woman", "man"]},
            "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
        },
        "training": {"local_steps": 3, "batch_size": 16, "learning_rate": 0.01},
        "fairness": {"thresholds": "fixed"},
        "privacy": {"mode": "local", "epsilon": 8.0, "engine": "fused", "metrics": {"tolerance": 1.0, "min_group_size": 1}},
        "federation": {"rounds": 2, "min_sites": 2},
        "simulation": {"sites": 2, "partition": {"kind": "iid"}, "seed": 3},
    }
    for section, values in sections.items():
        before = job.get(section)
        job[section] = {**(before if isinstance(before, dict) else {}), **values}
    return yaml.safe_dump(job)


@pytest.fixture
def language_job(tmp_path: Path, tiny_language_base: Path, language_rows: Path) -> LanguageJob:
    """``language_job(task, data={…}, privacy={…}, …)`` writes a job, see ``job_text``."""

    def write(task: str, **sections: dict[str, object]) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(job_text(tiny_language_base, language_rows, task, **sections))
        return path

    return write


@pytest.fixture(scope="session")
def answering(tmp_path_factory: pytest.TempPathFactory, tiny_language_base: Path, language_rows: Path) -> Path:
    """A finished run of causal-lm, without privacy."""
    folder = tmp_path_factory.mktemp("runs")
    training: dict[str, object] = {"local_steps": 30, "learning_rate": 0.01}
    text = job_text(
        tiny_language_base,
        language_rows,
        "causal-lm",
        privacy={"mode": "none", "epsilon": None},
        training=training,
        federation={"rounds": 1},
    )
    (folder / "job.yaml").write_text(text)
    simulate(load_job(folder / "job.yaml"), folder / "run", base=folder, observer=Silent())
    return folder / "run"
