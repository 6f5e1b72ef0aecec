"""``fedethos predict`` and ``release export`` on finished runs, against plain transformers and PEFT."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedethos.cli import run as fedethos
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate
from fedethos.simulations.export import export_run

Writer = Callable[..., Path]
OPEN: dict[str, object] = {"mode": "none", "epsilon": None}
QUICK: dict[str, object] = {"local_steps": 2, "learning_rate": 0.01}


def finished(job_file: Path, out: Path) -> Path:
    simulate(load_job(job_file), out, base=job_file.parent, observer=Silent())
    return out


def greedy(run: Path, base: Path, prompt: str, tokens: int) -> str:
    """The truth: plain transformers and PEFT."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), run / "adapter").eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    out = model.generate(ids, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def test_text_is_streamed_and_written_in_batches(
    answering: Path, tiny_language_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["Who was late 1?", "Who was doctor 22, and who the nurse?", "Who was home 333?"]
    want = [greedy(answering, tiny_language_base, prompt, 6) for prompt in prompts]
    assert fedethos(["predict", str(answering), "--prompt", prompts[0], "--max-new-tokens", "6"]) == 0
    assert capsys.readouterr().out.strip() == want[0]
    table = tmp_path / "ask.jsonl"
    table.write_text("".join(json.dumps({"who": prompt.removeprefix("Who was ").removesuffix("?")}) + "\n" for prompt in prompts))
    out = tmp_path / "answers.jsonl"
    assert fedethos(["predict", str(answering), "--file", str(table), "--out", str(out), "--max-new-tokens", "6"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {line["row"]: line["text"] for line in lines} == dict(enumerate(want))


def test_drawn_answers_follow_their_seed(answering: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for seed in ("1", "1", "2"):
        fedethos(["predict", str(answering), "--prompt", "Who?", "--temperature", "5", "--seed", seed, "--max-new-tokens", "12", "--json"])
        said.append(json.loads(capsys.readouterr().out)["text"])
    assert said[0] == said[1] != said[2]


def test_prompts_longer_than_the_model_reads_are_refused(answering: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fedethos(["predict", str(answering), "--prompt", "late " * 300]) == 3
    assert "DATA-185" in capsys.readouterr().err


def test_options_are_chosen_with_their_probabilities(language_job: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(language_job("multiple-choice", privacy=OPEN, training=QUICK, federation={"rounds": 1}), tmp_path / "run")
    asked = ["predict", str(run), "--prompt", "Who was late?", "--choice", "home", "--choice", "doctor", "--json"]
    assert fedethos(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert sum(answer["probabilities"].values()) == pytest.approx(1.0)
    assert fedethos(asked[:4]) == 3
    assert "DATA-186" in capsys.readouterr().err
    table = tmp_path / "ask.jsonl"
    table.write_text(json.dumps({"who": "late", "a": "home", "b": "doctor"}) + "\n")
    assert fedethos(["predict", str(run), "--file", str(table)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert set(line["probabilities"]) == {"first", "second", "neither"}
    typed, read = answer["probabilities"], line["probabilities"]
    assert typed["home"] / typed["doctor"] == pytest.approx(read["first"] / read["second"], rel=1e-4), "whatever the third option is"


def test_a_classifier_answers_at_its_released_threshold(write_job: Writer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = finished(write_job(privacy=OPEN, training={"local_steps": 1}, federation={"rounds": 1}), tmp_path / "run")
    assert fedethos(["predict", str(run), "--prompt", "39 years old, Bachelors", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    edge = json.loads((run / "fairness.json").read_text())["threshold"]["log_odds"]
    chance = answer["probabilities"][">50K"]
    assert (answer["label"] == ">50K") == (torch.logit(torch.tensor(chance)).item() >= edge)


def test_a_merged_model_needs_no_peft(answering: Path, tiny_language_base: Path, tmp_path: Path) -> None:
    merged, apart = tmp_path / "merged", tmp_path / "apart"
    assert fedethos(["release", "export", str(answering), "--out", str(merged), "--merged"]) == 0
    assert fedethos(["release", "export", str(answering), "--out", str(apart)]) == 0
    ids = torch.arange(3, 30)[None]
    base = AutoModelForCausalLM.from_pretrained(tiny_language_base)
    with torch.inference_mode():
        want = PeftModel.from_pretrained(base, apart).eval()(input_ids=ids).logits
        got = AutoModelForCausalLM.from_pretrained(merged).eval()(input_ids=ids).logits
    assert torch.allclose(got, want, atol=1e-4)
    assert AutoTokenizer.from_pretrained(merged).chat_template == AutoTokenizer.from_pretrained(tiny_language_base).chat_template
    with pytest.raises(FedethosError, match="RUN-964"):
        export_run(answering, apart, merged=False)
