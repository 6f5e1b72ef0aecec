"""A classifier from a local folder as a score of texts, such as their toxicity. No hub, no web service, no code of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForSequenceClassification

from fedethos.data.batching import by_length
from fedethos.errors import FedethosError
from fedethos.models.base import load_tokenizer, load_weights, quiet, require_complete

TextScorer = Callable[[Sequence[str]], npt.NDArray[np.float64]]
"""From n texts to the probability of the label, float64[n]."""

_TOKENS_AT_ONCE = 8192


def load_text_scorer(folder: Path, label: str) -> TextScorer:
    """The probability that the sequence classifier in ``folder`` gives to ``label``; texts are cut to what it reads.

    Raises
    ------
    FedethosError
        As ``load_base`` for a folder without a whole classifier; MODEL-488 when it does not know the label.
    """
    with quiet():
        model, missing = load_weights(AutoModelForSequenceClassification.from_pretrained, folder, as_what="a text classifier")
        tokenizer = load_tokenizer(folder)
    if missing or label not in model.config.label2id:
        raise FedethosError(
            "MODEL-488",
            "The classifier is not whole, or has no such label.",
            where=str(folder),
            why="Its scores would mean something else.",
            fix=f"Name one of its {len(model.config.label2id)} labels, as in its config.json, and a folder with its trained head.",
        )
    require_complete(folder, model, set())
    model.eval().requires_grad_(False)
    place, longest = int(model.config.label2id[label]), int(model.config.max_position_embeddings)

    def score(texts: Sequence[str]) -> npt.NDArray[np.float64]:
        tokens = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] for text in texts]
        found = np.zeros(len(texts))
        with torch.inference_mode():
            for rows in by_length(np.array([max(1, len(one)) for one in tokens], dtype=np.int64), tokens=_TOKENS_AT_ONCE):
                batch = tokenizer.pad({"input_ids": [tokens[row] for row in rows]}, return_tensors="pt")
                logits = model(**batch).logits.double()
                several = model.config.problem_type == "multi_label_classification"
                found[rows] = (logits.sigmoid() if several else logits.softmax(dim=1))[:, place].numpy()
        return found

    return score
