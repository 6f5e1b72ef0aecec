"""The token table against the tokenizer's own padding."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from fedethos.data.tokens import tokenize
from fedethos.errors import FedethosError

TEXTS = ["old man", "man", "an old man sees an old man", "nobody knows"]


def tokenizer(pad: str | None = "[PAD]") -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "an", "old", "man", "sees"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=pad, unk_token="[UNK]")


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [1, 0], [2], [1, 1]])
def test_a_batch_is_what_the_tokenizer_pads(indices: list[int]) -> None:
    table = tokenize(TEXTS, tokenizer(), max_length=6)
    input_ids, attention_mask = table.batch(np.array(indices))
    expected = tokenizer()([TEXTS[i] for i in indices], truncation=True, max_length=6, padding=True, return_tensors="pt")
    assert input_ids.dtype == attention_mask.dtype == expected["input_ids"].dtype
    assert input_ids.tolist() == expected["input_ids"].tolist()
    assert attention_mask.tolist() == expected["attention_mask"].tolist()


def test_the_table_is_ragged_and_int32() -> None:
    table = tokenize(TEXTS, tokenizer(), max_length=6)
    assert len(table) == 4
    assert table.lengths.tolist() == [4, 3, 6, 4]
    assert table.offsets.tolist() == [0, 4, 7, 13, 17]
    assert table.tokens.dtype == np.int32
    assert table.tokens[4:7].tolist() == [1, 6, 2]


def test_an_empty_batch_has_no_rows() -> None:
    input_ids, attention_mask = tokenize(TEXTS, tokenizer(), max_length=6).batch(np.array([], dtype=np.int64))
    assert input_ids.shape == attention_mask.shape == (0, 0)


def test_no_padding_token_is_an_error() -> None:
    with pytest.raises(FedethosError) as error:
        tokenize(TEXTS, tokenizer(pad=None), max_length=6)
    assert error.value.code == "DATA-141"
