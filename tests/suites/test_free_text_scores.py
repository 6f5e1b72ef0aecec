import json
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from fedethos.errors import FedethosError
from fedethos.fairness.suites.free_text import Reference, free_text, normalized, tally_texts, token_f1
from fedethos.fairness.suites.tally import Tally
from fedethos.suite_names import EVERYTHING

PAIRS = (
    ("The patient may go home today, with two drugs.", "The patient may go home today with one drug."),
    ("Nobody was late.", "The nurse was late."),
    ("", "The doctor."),
    ("A doctor!", "the doctor"),
)


def scores(tally: Tally) -> dict[str, float]:
    return {name: measure.value(tally.sums.sum(axis=0)).item() for name, measure in tally.measures.items()}


def test_words_are_compared_as_in_squad() -> None:
    assert normalized("The  doctor's, an ABC!") == ["doctors", "abc"]
    assert token_f1("the cat sat sat", "a cat sat down") == pytest.approx(2 * (2 / 3 * 2 / 3) / (2 / 3 + 2 / 3))  # cat, sat of three each
    assert token_f1("", "cat") == 0.0
    assert token_f1("the", "a") == 1.0  # nothing against nothing


def test_scores_are_those_of_the_libraries() -> None:
    texts, references = zip(*PAIRS, strict=True)
    found = tally_texts([Reference("", reference, "ward") for reference in references], texts)
    rouge = [RougeScorer(["rougeL"]).score(reference, text)["rougeL"].fmeasure for text, reference in PAIRS]
    assert scores(found[EVERYTHING]) == pytest.approx(
        {
            "exact_match": 1 / 4,
            "f1": np.mean([token_f1(text, reference) for text, reference in PAIRS]),
            "rouge_l": np.mean(rouge),
            "bleu": sacrebleu.corpus_bleu(list(texts), [list(references)]).score,
        }
    )
    assert set(found) == {EVERYTHING, "ward"}


def test_references_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "letters.jsonl"
    path.write_text(json.dumps({"prompt": "Who?", "reference": "Nobody", "group": "ward"}) + "\n")
    suite = free_text(path)
    assert (suite.items, suite.prompts) == (1, ["Who?"])
    for wrong in ('{"prompt": "Who?"}', '{"prompt": "Who?", "reference": " "}', "[]", ""):
        path.write_text(wrong + "\n" if wrong else "")
        with pytest.raises(FedethosError, match="DATA-191"):
            free_text(path)


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedethos.fairness.suites.free_text.find_spec", lambda name: None)
    with pytest.raises(FedethosError, match="RUN-966"):
        free_text(tmp_path)
