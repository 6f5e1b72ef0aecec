"""The released adapter folded into its base model: one folder that runs without PEFT.

Weights are merged in float32, whatever the base was trained in: W + (lora_alpha / r) B A, with PEFT's own ``merge_and_unload``.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedethos.errors import FedethosError
from fedethos.models.base import load_tokenizer, quiet


def export_merged(base: Path, adapter: Path, folder: Path, *, causal: bool, labels: int) -> None:
    """Write base model, adapter and tokenizer as one model into the new ``folder``.

    Raises
    ------
    FedethosError
        RUN-960 when the adapter cannot be read or does not fit the base.
    """
    with quiet():
        plain = (
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True, local_files_only=True)
            if causal
            else AutoModelForSequenceClassification.from_pretrained(
                base, num_labels=labels, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        )
        try:
            merged = PeftModel.from_pretrained(plain, adapter).merge_and_unload()
        except (OSError, RuntimeError, ValueError) as error:
            raise FedethosError(
                "RUN-960",
                f"The run holds no adapter that can be read ({type(error).__name__}).",
                where=str(adapter),
                why="There is nothing to merge.",
                fix="Let the run finish (`fedethos resume`), or restore its adapter folder.",
            ) from error
        merged.save_pretrained(folder)
        load_tokenizer(base).save_pretrained(folder)
