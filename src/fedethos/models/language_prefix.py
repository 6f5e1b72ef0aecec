"""The frozen prefix of a language model, computed once a record, for rows of tokens in which answers share a prompt.

As ``fedethos.models.prefix``, but with the positions and masks of ``fedethos.data.prompts``. ``causal_tail`` goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor

from fedethos.data.batching import by_length
from fedethos.data.prompts import Integers, PromptTable
from fedethos.models.cut import FrozenPrefix, causal_tail
from fedethos.models.language import additive_mask, score_answers
from fedethos.models.prefix import HiddenCache, hidden_file, require_finite, require_same

_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class CachedPrompts:
    """``table`` with the hidden states of its rows below the first adapter; ``dtype``: of the model."""

    table: PromptTable
    hidden: HiddenCache
    dtype: torch.dtype

    @property
    def lengths(self) -> Integers:
        return self.table.lengths

    def batch(self, indices: Integers) -> dict[str, Tensor]:
        """As ``PromptTable.batch``, with ``inputs_embeds`` float[b, t, h] in place of ``input_ids``."""
        hidden, _ = self.hidden.batch(indices)
        return {**_without_tokens(self.table.batch(indices)), "inputs_embeds": hidden.to(self.dtype)}


def cache_prompts(model: PeftModel, table: PromptTable, *, folder: Path, dtype: npt.DTypeLike = np.float32) -> CachedPrompts:
    """Run the frozen layers once over all records. ``folder``, ``dtype`` and errors as for ``prefix.build_cache``."""
    prefix, causal = FrozenPrefix(model).eval(), model.get_base_model()
    offsets = np.concatenate([[0], np.cumsum(table.lengths)]).astype(np.int64)
    hidden = hidden_file(folder, int(offsets[-1]), model.config.hidden_size, dtype)

    def states(batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = prefix(batch["input_ids"], additive_mask(batch["attention_mask"], causal), position_ids=batch["position_ids"])
        return found

    with torch.inference_mode():
        _require_same(model, table, states)
        for rows in by_length(table.lengths, tokens=_TOKENS_AT_ONCE):
            for row, index in zip(states(_on_device(model, table, rows)).to(hidden), rows, strict=True):
                hidden[offsets[index] : offsets[index + 1]] = row[: table.lengths[index]]
        require_finite(hidden)
    return CachedPrompts(table, HiddenCache(hidden, offsets), causal.get_input_embeddings().weight.dtype)


def _require_same(model: PeftModel, table: PromptTable, states: Callable[[dict[str, Tensor]], Tensor]) -> None:
    """Compare the cut model with the whole one on the shortest and the longest record."""
    if not len(table):
        return
    batch = _on_device(model, table, np.array([table.lengths.argmin(), table.lengths.argmax()]))
    was_training = model.training
    model.eval()
    whole = score_answers(model, **batch).mean
    cut = score_answers(causal_tail(model), **{**_without_tokens(batch), "inputs_embeds": states(batch)}).mean
    model.train(was_training)
    require_same(whole, cut)


def _on_device(model: PeftModel, table: PromptTable, rows: Integers) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in table.batch(rows).items()}


def _without_tokens(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "input_ids"}
