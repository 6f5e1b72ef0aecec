"""Every aggregation rule as one value of the job: whole runs, with and without privacy, serialised, cut and resumed, and exported."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification

from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.messages import Request
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.evaluate import load_exported
from fedethos.simulations.virtual_sites import open_federation

EXACT = ("ffa", "rolora", "fedsvd", "fedex", "flora", "fedsb")
NO_PRIVACY = {"mode": "none", "epsilon": None}
TOKENS = {"input_ids": torch.arange(5, 45).reshape(4, 10), "attention_mask": torch.ones(4, 10, dtype=torch.int64)}


def run(job_file: Path, out: Path, *overrides: str, wire: bool = False) -> dict[str, object]:
    simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=Silent(), wire=wire)
    return json.loads((out / "result.json").read_text())


def without_time(result: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in result.items() if key != "seconds"}


def rounds(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()][1:]


def plain_peft_logits(base: Path, folder: Path) -> np.ndarray:
    model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=2), folder).eval()
    with torch.inference_mode():
        return model(**TOKENS).logits.numpy()


def global_logits(job_file: Path, out: Path, tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of the model that a node makes from the last checkpoint's tensors, as for an evaluation; and from the exported adapter."""
    job = load_job(job_file, ["training.cache_frozen_prefix=off"])
    last = sorted((out / "checkpoints").iterdir())[-1]
    with open_federation(job, base=tmp_path, scratch=tmp_path, ledger=tmp_path / "other.sqlite", observer=Silent()) as federation:
        model = federation.model
        model.load(load_file(last / "arrays.safetensors"))
        with torch.inference_mode():
            ours = model.logits(TOKENS).numpy()
        load_exported(RunFolder(out).adapter, model, job.aggregation)
        with torch.inference_mode():
            return ours, model.logits(TOKENS).numpy()


@pytest.mark.parametrize("privacy", [NO_PRIVACY, {"epsilon": 8.0}], ids=["open", "private"])
@pytest.mark.parametrize("rule", ["fedavg", *EXACT, "flexlora"])
def test_a_rule_runs_and_its_adapter_is_the_last_global_model(write_job, tmp_path: Path, tiny_base: Path, rule: str, privacy) -> None:
    job_file = write_job(privacy=privacy, federation={"rounds": 2, "min_sites": 2, "aggregation": rule})
    out = tmp_path / "run"
    result = run(job_file, out, wire=True)
    assert result["status"] == "completed" and all(len(line["sites"]) == 3 for line in rounds(out))
    errors = [line["aggregation_error"] for line in rounds(out)]
    assert (max(errors) < 1e-5) == (rule in EXACT), errors
    expected, reloaded = global_logits(job_file, out, tmp_path)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(plain_peft_logits(tiny_base, out / "adapter"), expected, atol=2e-5)
    np.testing.assert_allclose(reloaded, expected, atol=2e-5)


@pytest.mark.parametrize(("key", "value"), [("aggregation", "rolora"), ("aggregation", "flora"), ("server_optimizer", "fedavgm")])
def test_a_run_cut_in_its_last_round_ends_with_the_same_numbers(write_job, tmp_path: Path, key: str, value: str) -> None:
    job_file = write_job(federation={"rounds": 3, "min_sites": 2, key: value})
    whole = run(job_file, tmp_path / "whole")

    class Interrupt(Silent):
        def round_started(self, round: int, rounds: int, sites: object) -> None:
            if round == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(load_job(job_file), tmp_path / "cut", base=tmp_path, observer=Interrupt())
    resume(tmp_path / "cut", observer=Silent())
    assert without_time(json.loads((tmp_path / "cut/result.json").read_text())) == without_time(whole)
    file = "adapter/adapter_model.safetensors"
    assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


@pytest.mark.parametrize("rule", ["rolora", "fedsb", "flora", "flexlora"])
def test_a_robust_rule_sees_what_trains_and_an_endless_bound_changes_nothing(write_job, tmp_path: Path, rule: str) -> None:
    job_file = write_job(federation={"rounds": 2, "min_sites": 2, "aggregation": rule})
    plain = run(job_file, tmp_path / "plain")
    bounded = run(job_file, tmp_path / "bounded", "robustness.rule=norm-bound", "robustness.norm_bound=1e9")
    assert bounded["metrics"] == plain["metrics"]
    file = "adapter/adapter_model.safetensors"
    assert (tmp_path / "plain" / file).read_bytes() == (tmp_path / "bounded" / file).read_bytes()
    assert run(job_file, tmp_path / "median", "robustness.rule=median")["status"] == "completed"
    assert (tmp_path / "median" / file).read_bytes() != (tmp_path / "plain" / file).read_bytes()


def test_a_site_of_smaller_rank_trains_that_much_and_gets_no_noise_elsewhere(write_job, tmp_path: Path) -> None:
    names = ("site-1", "site-2", "site-3")
    sites = {name: {"rank": rank, "weight": 1.0} for name, rank in zip(names, (1, 2, 4), strict=True)}
    job_file = write_job(federation={"rounds": 2, "min_sites": 2, "aggregation": "flexlora", "sites": sites})
    with open_federation(
        load_job(job_file), base=tmp_path, scratch=tmp_path, ledger=tmp_path / "l.sqlite", observer=Silent()
    ) as federation:
        start = federation.model.read()
        for node_id, rank in zip((1, 2, 3), (1, 2, 4), strict=True):
            node = federation.nodes[node_id]
            reply = node.train(Request(job_sha256=node.job.sha256, run="r", round=1, attempt=0, arrays=start))
            for name, array in reply.arrays.items():
                if "lora_" in name:
                    rows = array if ".lora_A." in name else array.T
                    assert rows[:rank].all() and not rows[rank:].any(), name


def test_combinations_that_mean_nothing_are_refused(write_job) -> None:
    for code, overrides in {
        "CFG-290": ["federation.aggregation=fedex", "federation.server_optimizer=fedadam"],
        "CFG-291": ["federation.sites={a: {rank: 2}}"],
        "CFG-292": ["federation.aggregation=flexlora", "federation.sites={a: {rank: 5}}"],
    }.items():
        with pytest.raises(FedethosError, match=code):
            load_job(write_job(), overrides)
