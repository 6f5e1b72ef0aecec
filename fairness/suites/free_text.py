"""Free text against references: exact match, token F1, ROUGE-L and BLEU.

Exact match and F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250): lower case, without punctuation and articles. ROUGE-L
(Lin 2004) is rouge-score's F-measure without stemming, averaged over texts; BLEU (Papineni et al. 2002) is sacrebleu's, of all texts
together.

All four punish style: a right answer in other words scores low, a wrong one in the reference's words high. Read them beside the texts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from fedethos.errors import FedethosError
from fedethos.fairness.suites.files import not_this_benchmark, read_text
from fedethos.fairness.suites.suite import WrittenSuite, thin
from fedethos.fairness.suites.tally import Floats, Measure, Tally, share, tallies

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ORDERS = 4  # BLEU's n-grams: columns of matches, then of n-grams, then both lengths
_BLEU = slice(4, 4 + 2 * _ORDERS + 2)


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True, extra="forbid")

    prompt: str
    reference: str
    group: str = ""


@dataclass(frozen=True)
class Reference:
    prompt: str
    reference: str
    group: str


def free_text(path: Path, *, count: int | None = None, seed: int = 0) -> WrittenSuite:
    """A JSONL file of ``{"prompt": …, "reference": …, "group": …}``; the group is optional, a unit is a text.

    Raises
    ------
    FedethosError
        RUN-966 without the extra ``text-metrics``; DATA-191 for another file.
    """
    if find_spec("sacrebleu") is None or find_spec("rouge_score") is None:
        raise FedethosError(
            "RUN-966",
            "Scores of free text need sacrebleu and rouge-score.",
            where="--suite text",
            fix="pip install 'fedethos[text-metrics]'",
        )
    references = thin(read_references(path), count, seed, lambda one: one.group)
    return WrittenSuite(
        name="text",
        items=len(references),
        prompts=[one.prompt for one in references],
        tally=lambda texts: tally_texts(references, texts),
    )


def read_references(path: Path) -> list[Reference]:
    references = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            parsed = _Line.model_validate_json(line)
        except ValidationError:
            raise not_this_benchmark(path, f"Line {number} is not an object with prompt and reference.") from None
        if not parsed.prompt.strip() or not parsed.reference.strip():
            raise not_this_benchmark(path, f"Line {number} has an empty prompt or reference.")
        references.append(Reference(parsed.prompt, parsed.reference, parsed.group))
    if not references:
        raise not_this_benchmark(path, "The file has no lines.")
    return references


def tally_texts(references: Sequence[Reference], texts: Sequence[str]) -> dict[str, Tally]:
    """What was written for each reference, in its order."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    rouge, bleu = RougeScorer(["rougeL"]), BLEU(effective_order=True)
    columns = np.zeros((len(texts), _BLEU.stop))
    for row, (one, text) in enumerate(zip(references, texts, strict=True)):
        words = bleu.sentence_score(text, [one.reference])
        columns[row] = (
            1.0,
            normalized(text) == normalized(one.reference),
            token_f1(text, one.reference),
            rouge.score(one.reference, text)["rougeL"].fmeasure,
            *words.counts,
            *words.totals,
            words.sys_len,
            words.ref_len,
        )
    everything = tallies(columns, [str(row) for row in range(len(texts))], [one.group for one in references], _measures())
    return {name: tally for name, tally in everything.items() if name}


def normalized(text: str) -> list[str]:
    """The words that SQuAD's script compares."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def token_f1(text: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, with their counts."""
    own, right = normalized(text), normalized(reference)
    common = sum((Counter(own) & Counter(right)).values())
    return 2.0 * common / (len(own) + len(right)) if own or right else 1.0


def _measures() -> Mapping[str, Measure]:
    return {"exact_match": share(1, 0), "f1": share(2, 0), "rouge_l": share(3, 0), "bleu": Measure(_bleu, 0.0, 100.0)}


def _bleu(sums: Floats) -> Floats:
    from sacrebleu.metrics.bleu import BLEU

    rows = sums[..., _BLEU].reshape(-1, 2 * _ORDERS + 2).astype(np.int64).tolist()
    scores = [BLEU.compute_bleu(row[:_ORDERS], row[_ORDERS : 2 * _ORDERS], row[-2], row[-1], smooth_method="exp").score for row in rows]
    return np.array(scores).reshape(sums.shape[:-1])
