"""Shared by all rooms: the real pretrained encoder, and small federations that run in seconds.

A small federation has real Adult records and a tiny random BERT with MiniLM's own tokenizer.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from tokenizers import ByteLevelBPETokenizer
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedethos.models import assets

ROOT = Path(__file__).parents[1]

JobWriter = Callable[..., Path]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of the real MiniLM encoder."""
    return assets.fetch("minilm", say=print)


@pytest.fixture(scope="session")
def tiny_base(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with random weights; every test gets the same ones."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, max_position_embeddings=64)
    BertForSequenceClassification(config).bert.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (minilm / name).exists():
            shutil.copy(minilm / name, folder / name)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_language_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with random weights and a byte-level tokenizer with SmolLM2's chat marks; every test gets the same ones."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["the patient may go home today", "who was late: the nurse or the doctor"] * 20, vocab_size=300)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,  # logits are then not all the same
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adult_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """900 real records as CSV."""
    path = tmp_path_factory.mktemp("data") / "adult.csv"
    pd.read_parquet(ROOT / "src/fedethos/data/builtin/adult.parquet").sample(900, random_state=1).to_csv(path, index=False)
    return path


@pytest.fixture
def write_job(tmp_path: Path, tiny_base: Path, adult_rows: Path) -> JobWriter:
    """``write_job(privacy={...}, …)`` writes a job of three sites; a keyword replaces keys of that section."""

    def write(**sections: dict[str, object] | str) -> Path:
        job: dict[str, object] = {
            "schema": "fedethos/job/v1",
            "name": "small",
            "model": {"path": str(tiny_base), "max_length": 48},
            "lora": {"r": 4, "layers_to_transform": [1]},
            "data": {
                "path": str(adult_rows),
                "na_values": ["?"],
                "text": "{age} years old, {education}, {occupation}, {relationship}",
                "label": {"column": "income", "values": ["<=50K", ">50K"], "favorable": ">50K"},
                "sensitive": {"sex": ["Female", "Male"]},
                "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
            },
            "training": {"local_steps": 3, "batch_size": 32, "learning_rate": 0.01},
            "privacy": {"epsilon": 8.0},
            "federation": {"rounds": 3, "min_sites": 2},
            "simulation": {"sites": 3, "partition": {"kind": "dirichlet", "by": "sex", "alpha": 2.0}, "seed": 3},
        }
        for section, value in sections.items():
            job[section] = {**job[section], **value} if isinstance(value, dict) and isinstance(job.get(section), dict) else value
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job))
        return path

    return write
