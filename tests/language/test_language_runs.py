"""Whole runs of the language tasks: what they learn, what they count, and what they leave, against plain transformers and PEFT."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.governance.report import render_report
from fedethos.privacy.counts import plan_counts
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate
from fedethos.simulations.run_audit import audit_run
from fedethos.simulations.virtual_sites import site_records

Writer = Callable[..., Path]
Document = dict[str, dict[str, object]]
TASKS = ("causal-lm", "multiple-choice", "preference")
OPEN: dict[str, object] = {"mode": "none", "epsilon": None}


def run(job_file: Path, out: Path) -> Document:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent())
    document: Document = json.loads((out / "result.json").read_text())
    return document


@pytest.mark.parametrize("task", TASKS)
def test_a_private_job_of_each_task_runs_and_reports(task: str, language_job: Writer, tmp_path: Path) -> None:
    result = run(language_job(task), tmp_path / "run")
    sites = result["privacy"]["sites"]
    assert result["status"] == "completed"
    assert isinstance(sites, dict)
    assert all(0.0 < site["epsilon"] <= 8.0 for site in sites.values())
    assert set(result["metrics"]) == {"accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy", "response_perplexity"}
    if task == "causal-lm":
        with pytest.raises(FedethosError, match="PRIV-370"):
            audit_run(RunFolder(tmp_path / "run"), canaries=100, steps=2, claim=None, seed=0, observer=Silent())
    else:
        audited = audit_run(RunFolder(tmp_path / "run"), canaries=100, steps=2, claim=None, seed=0, observer=Silent())
        assert all(check.holds for check in audited.audit.checks)
    page = render_report(tmp_path / "run").read_text()
    assert task in page
    shown = {"causal-lm": "Response perplexity", "multiple-choice": "AUC", "preference": "Better answers likelier"}
    assert [name for name, words in shown.items() if words in page] == [task], "each task shows the metrics that it has"
    perplexity = result["metrics"]["response_perplexity"]
    assert (perplexity is None) == (task != "causal-lm")
    if isinstance(perplexity, dict):
        exact = result["oracle"]["metrics"]["response_perplexity"]  # type: ignore[index]
        assert perplexity["low"] < exact < perplexity["high"]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_counted_is_what_plain_peft_answers(task: str, language_job: Writer, tmp_path: Path, tiny_language_base: Path) -> None:
    """Oracle accuracy by group, recomputed from the exported adapter one answer at a time, without any of our code."""
    job_file = language_job(task, privacy=OPEN, training={"local_steps": 30, "learning_rate": 0.01})
    result = run(job_file, tmp_path / "run")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_language_base), tmp_path / "run" / "adapter").eval()
    job = load_job(job_file)
    records = [splits["test"] for splits in site_records(job, job_file.parent).values()]
    tokenizer = AutoTokenizer.from_pretrained(tiny_language_base)

    def right(text: str, answers: tuple[str, ...], label: int) -> bool:
        prompt = chat(tokenizer, text)
        if task == "causal-lm":
            want = tokenizer(answers[0])["input_ids"] + [tokenizer.eos_token_id]
            got = model.generate(torch.tensor([prompt]), max_new_tokens=len(want), do_sample=False, pad_token_id=0)[0, len(prompt) :]
            return bool(got.tolist() == want)
        end = [tokenizer.eos_token_id] if task == "preference" else []
        scores = [likelihood(model, prompt, tokenizer(answer)["input_ids"] + end) for answer in answers]
        if task == "multiple-choice":
            return int(np.argmax([total / count for total, count in scores])) == label
        return scores[0][0] / scores[0][1] > scores[1][0] / scores[1][1]

    outcomes = pd.DataFrame(
        [
            (int(group), right(text, answers, int(label)))
            for part in records
            for group, text, answers, label in zip(part.groups["asked_by"], part.text, part.answers, part.label, strict=True)
        ],
        columns=["group", "right"],
    )
    oracle = result["oracle"]
    assert oracle["metrics"]["accuracy"] == pytest.approx(outcomes.right.mean(), abs=1e-9)  # type: ignore[index]
    by_group = outcomes.groupby("group").right.mean()
    if task != "multiple-choice":
        gap = oracle["fairness"]["asked_by"]["demographic_parity_difference"]  # type: ignore[index]
        assert gap == pytest.approx(by_group.max() - by_group.min(), abs=1e-9)
    assert oracle["metrics"]["worst_group_accuracy"] == pytest.approx(by_group.min(), abs=1e-9)  # type: ignore[index]
    perplexity = oracle["metrics"]["response_perplexity"]  # type: ignore[index]
    if task != "causal-lm":
        assert perplexity is None
        return
    nats = [
        -total / count
        for part in records
        for text, answers in zip(part.text, part.answers, strict=True)
        for total, count in [likelihood(model, chat(tokenizer, text), tokenizer(answers[0])["input_ids"] + [tokenizer.eos_token_id])]
    ]
    assert np.log(perplexity) == pytest.approx(np.mean(nats), abs=0.0625), "half a bin"
    assert result["metrics"]["response_perplexity"]["value"] == pytest.approx(perplexity)  # type: ignore[index]


def chat(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    tokens: list[int] = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False)
    return tokens


def likelihood(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> tuple[float, int]:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1)[range(len(answer)), answer].sum()), len(answer)


@pytest.mark.parametrize("task", TASKS)
def test_training_makes_answers_right(task: str, language_job: Writer, tmp_path: Path) -> None:
    job_file = language_job(task, privacy=OPEN, training={"local_steps": 40, "learning_rate": 0.01}, federation={"rounds": 3})
    result = run(job_file, tmp_path / "run")
    oracle = result["oracle"]
    assert oracle["metrics"]["accuracy"] > oracle["baseline"]["accuracy"] + 0.2  # type: ignore[index]


@pytest.mark.parametrize(("task", "watched"), [("causal-lm", {"scores", "groups"}), ("preference", {"scores"})])
def test_early_stopping_asks_for_what_tells_who_was_right(task: str, watched: set[str], language_job: Writer) -> None:
    """The score table of causal-lm holds losses, which do not tell whether greedy decoding writes the response."""
    job = load_job(language_job(task, federation={"early_stop": {"metric": "accuracy", "patience": 1}}))
    assert {part for plan in plan_counts(job) if plan.population == "validation" for part in plan.parts} == watched
