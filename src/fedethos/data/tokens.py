"""Tokenized texts in one ragged table, cut into padded batches on demand. Next: ``fedethos.models`` and the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fedethos.errors import FedethosError


@dataclass(frozen=True, eq=False)
class TokenTable:
    """n token sequences end to end.

    Attributes
    ----------
    tokens : int32[T]
        All sequences, one after the other.
    offsets : int64[n + 1]
        Sequence i is ``tokens[offsets[i]:offsets[i + 1]]``.
    pad_token_id : int
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    pad_token_id: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per sequence, int64[n]."""
        return np.diff(self.offsets)

    def batch(self, indices: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """``input_ids`` and ``attention_mask`` of the sequences at ``indices``: int64[b, t], padded on the right to the longest, t tokens.

        No indices give two tensors of shape [0, 0].
        """
        lengths = self.lengths[indices]
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_token_id, dtype=np.int64)
        ids[mask] = np.concatenate([self.tokens[:0], *(self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in indices)])
        return torch.from_numpy(ids), torch.from_numpy(mask.astype(np.int64))


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> TokenTable:
    """Tokenize with the model's special tokens; longer texts are cut at ``max_length`` tokens. Raises DATA-141 without a padding token."""
    if tokenizer.pad_token_id is None:
        raise FedethosError(
            "DATA-141",
            "The tokenizer has no padding token.",
            where="model.path",
            why="Records of different length could not share a batch.",
            fix="Set pad_token in the model's tokenizer_config.json.",
        )
    sequences = tokenizer(list(texts), truncation=True, max_length=max_length, padding=False, return_attention_mask=False)["input_ids"]
    offsets = np.zeros(len(sequences) + 1, dtype=np.int64)
    np.cumsum([len(sequence) for sequence in sequences], out=offsets[1:])
    tokens = np.fromiter(chain.from_iterable(sequences), dtype=np.int32, count=offsets[-1])
    return TokenTable(tokens, offsets, int(tokenizer.pad_token_id))
