"""Likelihoods of benchmark answers: shared beginnings change nothing against scoring each text in a forward pass of its own."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedethos.client.scorer import ask, likelihoods
from fedethos.data.batching import by_length
from fedethos.data.prompts import content_tokens
from fedethos.errors import FedethosError
from fedethos.fairness.suites.suite import Question, Suite
from fedethos.job import Model
from fedethos.models.base import LoadedBase
from fedethos.models.language_base import load_language_base

TEXTS = (
    ("the nurse was late", "the doctor was late"),
    ("who was late", "who was late today"),  # one begins with the other
    ("home", "today and today and today"),
    ("the patient", "the patient"),
    ("who",),
)
PROMPTS = (("Who was late?", ("the nurse", "nobody")), ("The patient may go", ("home", "home today", "to the doctor")))


@pytest.fixture(scope="module")
def loaded(tiny_language_base: Path) -> LoadedBase:
    return load_language_base(tiny_language_base, Model(path="x", max_length=64))


def suite(*questions: Question, instruct: bool = False) -> Suite:
    return Suite(name="made-up", items=len(questions), questions=questions, instruct=instruct, tally=lambda answers: {})


def alone(loaded: LoadedBase, before: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([before + answer])).logits[0, len(before) - 1 : -1].float()
    return float(logits.log_softmax(-1)[torch.arange(len(answer)), answer].sum())


def test_whole_texts_are_scored_from_their_first_token_on(loaded: LoadedBase) -> None:
    asked = ask(suite(*(Question(None, variants) for variants in TEXTS)), loaded.tokenizer, template=False, longest=64)
    found = likelihoods(loaded.model, asked)
    for row, variants in enumerate(TEXTS):
        for place in range(2):
            if place == len(variants):
                assert found.log_likelihood[row, place] == -np.inf
                continue
            tokens = content_tokens(loaded.tokenizer, variants[place])
            assert found.tokens[row, place] == len(tokens)
            assert found.log_likelihood[row, place] == pytest.approx(alone(loaded, [loaded.tokenizer.bos_token_id], tokens), abs=1e-4)


def test_a_common_beginning_is_computed_once(loaded: LoadedBase) -> None:
    asked = ask(suite(Question(None, TEXTS[1])), loaded.tokenizer, template=False, longest=64)
    (_, table), *_ = asked.tables
    tokens = [len(content_tokens(loaded.tokenizer, text)) for text in TEXTS[1]]
    assert table.lengths[0] == 1 + tokens[1] + 1  # start, the longer text, and the last token of the shorter once more


@pytest.mark.parametrize("template", [False, True])
def test_questions_and_whole_texts_in_one_suite_keep_their_places(loaded: LoadedBase, template: bool) -> None:
    questions = (Question(*PROMPTS[0]), Question(None, TEXTS[0]), Question(*PROMPTS[1]))
    found = likelihoods(loaded.model, ask(suite(*questions, instruct=True), loaded.tokenizer, template=template, longest=128))
    tokenizer = loaded.tokenizer
    for row, (prompt, answers) in zip((0, 2), PROMPTS, strict=True):
        chat = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        before = tokenizer(chat if template else prompt, add_special_tokens=False)["input_ids"]
        for place, answer in enumerate(answers):
            own = content_tokens(tokenizer, answer if template else f" {answer}")
            assert found.log_likelihood[row, place] == pytest.approx(alone(loaded, before, own), abs=1e-4)
    assert found.log_likelihood[0, 2] == found.log_likelihood[1, 2] == -np.inf


def test_questions_that_the_model_cannot_read_are_refused(loaded: LoadedBase) -> None:
    with pytest.raises(FedethosError, match="DATA-192"):
        ask(suite(Question("who " * 70, ("a", "b"))), loaded.tokenizer, template=False, longest=64)


def test_what_counts_is_the_longest_answer_not_the_row_of_all(loaded: LoadedBase) -> None:
    asked = ask(suite(Question("who was late", ("nurse today",) * 12)), loaded.tokenizer, template=False, longest=20)
    assert asked.tables[0][1].lengths[0] > 20


def test_batches_hold_every_row_once_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 300)
    batches = list(by_length(lengths, tokens=200))
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(batch) * lengths[batch].max() <= 200 for batch in batches)
    assert len(list(by_length(np.array([500]), tokens=200))) == 1
