"""What a private training step costs beside the plain PEFT step: time and memory on one CPU thread.

``python -m fedethos.simulations.benchmarks.privacy_step`` prints one line per figure. All variants of a setting run in turn,
again and again, in one process; a time ratio is the median of the ratios of neighbouring runs, in processor seconds. Memory
is what a step adds to a fresh process that already holds the model, at its peak; tensors are memory-mapped, because with glibc's
heap the holes between them double the reference's figure and not ours. Models have the real shapes and random weights.

Variants: ``peft`` (the reference: Hugging Face model, PEFT adapter that trains both factors, the model's own mean loss), ``fused`` (the
private step), ``fused-open`` (the same fusion without privacy), ``peft-frozen`` (the reference with A frozen) and ``opacus``.
Every step includes the AdamW update; a private step includes its noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from fedethos.data.prompts import PromptTable
from fedethos.losses import IGNORED, per_example_cross_entropy
from fedethos.models.language import score_answers
from fedethos.privacy.coverage import CoveredLora, covered_modules
from fedethos.privacy.engine import ClippingEngine
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.fused_linear import FusedLora
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.simulations.benchmarks.row import Row, compared, line

Variant = Literal["peft", "peft-frozen", "fused", "fused-open", "opacus"]
Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """One shape of training step; the limits are on fused / peft."""

    name: str
    model: Literal["encoder", "llama"]
    batch: int
    r: int = 8
    freeze_a: bool = False
    response_only: bool = False
    time_limit: float = 1.0
    memory_limit: float = 1.0


SETTINGS = (
    Setting("encoder_r8", "encoder", batch=32, time_limit=0.95),
    Setting("encoder_r8_a_frozen", "encoder", batch=32, freeze_a=True, time_limit=0.90, memory_limit=0.70),
    Setting("encoder_r8_batch8", "encoder", batch=8, time_limit=0.95),
    Setting("encoder_r16", "encoder", batch=32, r=16, time_limit=0.95),
    Setting("llama135m_r8", "llama", batch=4),
    Setting("llama135m_r8_response_only", "llama", batch=4, response_only=True, time_limit=0.85, memory_limit=0.80),
)
LENGTH = 128
_NOISE_MULTIPLIER = 1.0
_MAX_GRAD_NORM = 1.0
_SMALLEST_MAPPED_BLOCK = 65_536  # bytes


def rows(settings: Sequence[Setting] = SETTINGS, *, repeats: int = 5, memory: bool = True) -> list[Row]:
    """Measure ``settings``: seconds a step (``dp_step_vs_peft/…``) and MiB a step adds (``dp_memory_vs_peft/…``)."""
    return [row for setting in settings for row in _rows(setting, repeats, memory)]


def _rows(setting: Setting, repeats: int, memory: bool) -> list[Row]:
    variants: list[Variant] = ["peft", "fused", "fused-open", "opacus"]
    if setting.freeze_a:
        variants.append("peft-frozen")
    seconds = step_seconds(setting, variants, repeats)
    found = []
    for variant in variants[1:]:
        ratio = statistics.median(ours / reference for ours, reference in zip(seconds[variant], seconds["peft"], strict=True))
        medians = statistics.median(seconds[variant]), statistics.median(seconds["peft"])
        found.append(_row("dp_step_vs_peft", setting.name, variant, medians, ratio, setting.time_limit))
    if memory:
        mebibytes = {variant: _peak_in_fresh_process(setting, variant) for variant in variants}
        for variant in variants[1:]:
            pair = mebibytes[variant], mebibytes["peft"]
            found.append(_row("dp_memory_vs_peft", setting.name, variant, pair, pair[0] / pair[1], setting.memory_limit))
    return found


def _row(figure: str, setting: str, variant: Variant, pair: tuple[float, float], ratio: float, limit: float) -> Row:
    judged = variant == "fused"
    name = f"{figure}/{setting}" if judged else f"{figure}/{setting}/{variant}"
    return compared("privacy", name, *pair, ratio=ratio, limit=limit if judged else None)


def step_seconds(setting: Setting, variants: Sequence[Variant], repeats: int) -> dict[Variant, list[float]]:
    """Processor seconds of each step; the variants take turns, after one round that does not count."""
    steps = {variant: _step(setting, variant) for variant in variants}
    seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
    for turn in range(repeats + 1):
        for variant, step in steps.items():
            begin = time.process_time()
            step()
            if turn:
                seconds[variant].append(time.process_time() - begin)
    return seconds


def peak_mebibytes(setting: Setting, variant: Variant) -> float:
    """MiB that two steps add to this process at their peak (Linux: the resident set's high-water mark)."""
    step = _step(setting, variant)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins at the present size
    before = _resident("VmRSS")
    for _ in range(2):
        step()
    return (_resident("VmHWM") - before) / 1024


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _peak_in_fresh_process(setting: Setting, variant: Variant) -> float:
    command = [sys.executable, "-m", "fedethos.simulations.benchmarks.privacy_step", "--peak", setting.name, variant]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(_SMALLEST_MAPPED_BLOCK)}
    return float(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


@dataclass(frozen=True)
class _Training:
    """What all variants of a setting have in common: the same model, records and optimizer."""

    setting: Setting
    model: nn.Module
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    tokens: Tensor
    labels: Tensor

    def per_example_loss(self) -> Tensor:
        mask = torch.ones_like(self.tokens)
        if self.setting.model == "encoder":
            return per_example_cross_entropy(self.model(input_ids=self.tokens, attention_mask=mask).logits, self.labels)
        return -score_answers(cast(PeftModel, self.model), **self.records()).mean[:, 0]

    def records(self) -> dict[str, Tensor]:
        """The tokens as prompts with one answer each; the first token of a text that is learnt whole is its prompt."""
        rows = len(self.tokens)
        prompt = np.full(rows, _prompt_length(self.setting))
        table = PromptTable(self.tokens.flatten().numpy().astype(np.int32), prompt, (LENGTH - prompt)[:, None], 0)
        return table.batch(np.arange(rows))


def _training(setting: Setting, variant: Variant) -> _Training:
    model = _model(setting, freeze_a=setting.freeze_a and variant != "peft")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tokens = torch.randint(5, 30_000, (setting.batch, LENGTH), generator=torch.Generator().manual_seed(1))
    return _Training(setting, model, trained, torch.optim.AdamW(trained.values(), lr=1e-5), tokens, _labels(setting, tokens))


def _step(setting: Setting, variant: Variant) -> Step:
    training = _training(setting, variant)
    if variant in ("peft", "peft-frozen"):
        return partial(_plain_step, training)
    if variant == "fused-open":
        _fuse_without_privacy(training)
        return partial(_open_step, training)
    engine: ClippingEngine = FusedEngine(_MAX_GRAD_NORM) if variant == "fused" else OpacusEngine(_MAX_GRAD_NORM)
    engine.attach(training.model, training.trained)
    return partial(_private_step, training, engine)


def private_step_of_units(setting: Setting, *, rows_per_unit: int) -> Step:
    """The fused private step with every ``rows_per_unit`` records of the batch in one unit."""
    training = _training(setting, "fused")
    engine = FusedEngine(_MAX_GRAD_NORM)
    engine.attach(training.model, training.trained)
    return partial(_private_step, training, engine, rows_per_unit=rows_per_unit)


def _plain_step(training: _Training) -> None:
    training.optimizer.zero_grad()
    mask = torch.ones_like(training.tokens)
    torch.autograd.backward(training.model(input_ids=training.tokens, attention_mask=mask, labels=training.labels).loss)
    training.optimizer.step()


def _open_step(training: _Training) -> None:
    training.optimizer.zero_grad()
    torch.autograd.backward(training.per_example_loss().mean())
    training.optimizer.step()


def _private_step(training: _Training, engine: ClippingEngine, *, rows_per_unit: int = 1) -> None:
    training.optimizer.zero_grad()
    engine.reset()
    engine.backward(training.per_example_loss(), torch.arange(training.setting.batch) // rows_per_unit)
    for name, total in engine.clipped_sum().items():
        noisy = total + _MAX_GRAD_NORM * _NOISE_MULTIPLIER * torch.randn_like(total)
        training.trained[name].grad = (noisy / training.setting.batch).float()
    training.optimizer.step()


def _model(setting: Setting, *, freeze_a: bool) -> nn.Module:
    torch.manual_seed(0)
    if setting.model == "encoder":  # all-MiniLM-L6
        base = BertForSequenceClassification(
            BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
        )
    else:  # SmolLM2-135M
        base = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                intermediate_size=1536, vocab_size=49_152, tie_word_embeddings=True,
            )
        )  # fmt: skip
    task = TaskType.SEQ_CLS if setting.model == "encoder" else TaskType.CAUSAL_LM
    model: nn.Module = get_peft_model(base.eval(), LoraConfig(task_type=task, r=setting.r, target_modules="all-linear")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
        if "lora_A" in name and freeze_a:
            parameter.requires_grad_(False)
    return model


def _labels(setting: Setting, tokens: Tensor) -> Tensor:
    if setting.model == "encoder":
        return tokens[:, 0] % 2
    labels = tokens.clone()
    labels[:, : _prompt_length(setting)] = IGNORED
    return labels


def _prompt_length(setting: Setting) -> int:
    return LENGTH * 3 // 4 if setting.response_only else 1


def _fuse_without_privacy(training: _Training) -> None:
    """The same fused layers with the batch seen as one example, whose gradient is the ordinary one."""

    def keep(name: str, gradient: Tensor) -> None:
        total = gradient[0].T if "lora_B" in name else gradient[0]
        grad = training.trained[name].grad
        training.trained[name].grad = total if grad is None else grad + total

    def as_one_example(fused: FusedLora) -> Callable[[Tensor], Tensor]:
        return lambda x: fused(x.flatten(0, -2)[None]).reshape(*x.shape[:-1], -1)

    for covered in covered_modules(training.model, training.trained):
        if isinstance(covered, CoveredLora):
            covered.layer.forward = as_one_example(FusedLora(covered, keep))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[setting.name for setting in SETTINGS], help="settings to measure")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of lines")
    parser.add_argument("--peak", nargs=2, metavar=("SETTING", "VARIANT"), help="print the MiB that a step adds, and end")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    by_name = {setting.name: setting for setting in SETTINGS}
    if arguments.peak:
        print(peak_mebibytes(by_name[arguments.peak[0]], arguments.peak[1]))
        return
    found = rows([by_name[name] for name in arguments.only or by_name], repeats=arguments.repeats, memory=not arguments.no_memory)
    if arguments.json:
        print(json.dumps(found, indent=1))
        return
    for row in found:
        print(line(row))


if __name__ == "__main__":
    main()
