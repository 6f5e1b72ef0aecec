"""Tiny random models of several architectures, and texts of different length. Dropout is on, to see it switched off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from fedethos.data.tokens import TokenTable
from fedethos.models.adapter import named_adapter_parameters

VOCABULARY = 99
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=48, hidden_dropout_prob=0.5
    ),
    "roberta": RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        attention_probs_dropout_prob=0.5,
    ),
    "distilbert": DistilBertConfig(vocab_size=VOCABULARY, dim=32, n_layers=4, n_heads=4, hidden_dim=48, dropout=0.5, attention_dropout=0.5),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        attention_dropout=0.5,
        pad_token_id=0,
    ),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=4, n_head=4, resid_pdrop=0.5, pad_token_id=0),
}


@pytest.fixture
def tiny() -> Callable[[str], PreTrainedModel]:
    """A random classifier with two labels; the same for the same name."""

    def build(name: str) -> PreTrainedModel:
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(CONFIGS[name])
        return model.eval().requires_grad_(False)

    return build


@pytest.fixture
def shake() -> Callable[[PeftModel], PeftModel]:
    """Random numbers into the adapter, whose B starts at zero: gradients of A and effects of B show only so."""

    def fill(model: PeftModel) -> PeftModel:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in named_adapter_parameters(model).values():
                parameter.normal_(0.0, 0.1)
        return model

    return fill


@pytest.fixture
def table() -> TokenTable:
    """23 records of 1 to 30 tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 31, 23)
    lengths[:2] = 1, 30
    return TokenTable(rng.integers(2, VOCABULARY, lengths.sum(), dtype=np.int32), np.r_[0, lengths.cumsum()], 0)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty asset cache."""
    monkeypatch.setenv("FEDETHOS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"
