"""Whole texts as tokens, where only their likelihood is wanted: variants of one text share the row of tokens that they begin with.

    start | common beginning | rest of variant 1 | rest of variant 2 | …

Unlike a prompt, the common beginning is scored too, once for all variants. So two sentences that differ in their last word cost little more
than one. ``fedethos.data.prompts`` has the layout; whole texts add the beginning's own tokens to what is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from fedethos.data.prompts import Integers, PromptTable, Tokenized, content_tokens
from fedethos.errors import FedethosError


@dataclass(frozen=True, eq=False)
class WholeTexts:
    """``table``: n records, whose prompts are the start token and the common beginnings."""

    table: PromptTable

    @property
    def lengths(self) -> Integers:
        return self.table.lengths

    @property
    def longest(self) -> Integers:
        """Tokens of the longest variant of each record and its start, int64[n]."""
        return self.table.longest

    def batch(self, indices: Integers) -> dict[str, torch.Tensor]:
        """As ``PromptTable.batch``, with the common beginning as one more answer, the last: [b, k + 1]."""
        batch = self.table.batch(indices)
        ids, answers, begun = batch["input_ids"], batch["answer_tokens"], torch.from_numpy(self.table.prompt[indices] - 1)
        options = answers.shape[1]
        row, place = torch.nonzero(torch.arange(ids.shape[1]) < begun[:, None], as_tuple=True)
        added = {
            "source": row * ids.shape[1] + place,
            "target": ids[row, place + 1],
            "slot": row * (options + 1) + options,
        }
        own = batch | {"slot": batch["slot"] + batch["slot"] // options}
        return (
            own
            | {name: torch.cat([own[name], more]) for name, more in added.items()}
            | {"answer_tokens": torch.cat([answers, begun[:, None]], 1)}
        )


def tokenize_whole_texts(texts: Sequence[tuple[str, ...]], tokenizer: PreTrainedTokenizerBase) -> WholeTexts:
    """Tokenize n records of one or more variants of a text. Each begins with the tokenizer's start token, or the end token where there
    is none, as in lm-evaluation-harness. MODEL-483 when it has neither."""
    start = _start_of(tokenizer)
    rows = [_row([content_tokens(tokenizer, text) for text in variants]) for variants in texts]
    most = max((len(rest) for _, rest in rows), default=1)
    return WholeTexts(
        PromptTable(
            tokens=np.array([token for begun, rest in rows for part in ([start], begun, *rest) for token in part], dtype=np.int32),
            prompt=np.array([1 + len(begun) for begun, _ in rows], dtype=np.int64),
            answers=np.array([[*map(len, rest), *[0] * (most - len(rest))] for _, rest in rows], dtype=np.int64).reshape(len(rows), most),
            pad_token_id=int(tokenizer.pad_token_id),
        )
    )


def _row(variants: list[Tokenized]) -> tuple[Tokenized, list[Tokenized]]:
    """The common beginning, and the rests; each variant keeps at least one token of its own, so that none looks absent."""
    same = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*variants, strict=False)))
    shared = min(same, min(map(len, variants)) - 1) if len(variants) > 1 else 0
    return variants[0][:shared], [variant[shared:] for variant in variants]


def _start_of(tokenizer: PreTrainedTokenizerBase) -> int:
    for start in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if start is not None:
            return int(start)
    raise FedethosError(
        "MODEL-483",
        "The tokenizer has neither a start nor an end-of-text token.",
        where="model.path",
        why="The first token of a text would have nothing to follow.",
        fix="Set bos_token or eos_token in the model's tokenizer_config.json.",
    )
