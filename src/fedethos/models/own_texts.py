"""Text that a language model writes by itself: what it knows, without anybody's data.

Each text begins with a word drawn from the whole vocabulary and goes on as the model says (Liu et al. 2023, "LLM-QAT: Data-Free
Quantization Aware Training", arXiv:2305.17888, section 2.1).
"""

from __future__ import annotations

import numpy as np
import torch
from peft import PeftModel

from fedethos.data.prompts import PromptTable
from fedethos.models.language import without_adapter

_AT_ONCE = 64


def own_texts(model: PeftModel, *, count: int, tokens: int, pad_token_id: int, seed: int) -> PromptTable:
    """``count`` texts of ``tokens`` tokens each from the base model of ``model``; each is the answer to its first token.

    The same seed gives the same texts on the same machine; on another, rounding may lead a text elsewhere.
    """
    texts = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []), without_adapter(model):
        torch.manual_seed(seed)
        for begun in torch.split(torch.randint(model.config.vocab_size, (count, 1)), _AT_ONCE):
            texts.append(
                model.generate(  # sampled from all words: no top_k, no temperature, whatever the model's own settings say
                    input_ids=begun.to(model.device),
                    attention_mask=torch.ones_like(begun, device=model.device),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    repetition_penalty=1.0,
                    min_new_tokens=tokens - 1,
                    max_new_tokens=tokens - 1,
                    pad_token_id=pad_token_id,
                ).cpu()
            )
    written = torch.cat(texts).numpy().astype(np.int32)
    return PromptTable(written.ravel(), np.ones(count, dtype=np.int64), np.full((count, 1), tokens - 1, dtype=np.int64), pad_token_id)
