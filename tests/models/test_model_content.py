"""A model folder is data: its hash is sha256sum's, and whatever could run code is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedethos.errors import FedethosError
from fedethos.models.content import check_folder, content_hash, model_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    safetensors.torch.save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(FedethosError) as caught:
        check_folder(folder)
    return caught.value.code


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_hash_is_that_of_sha256sum(minilm: Path) -> None:
    names = " ".join(path.name for path in model_files(minilm))
    listing = subprocess.run(f"sha256sum {names} | sha256sum", shell=True, cwd=minilm, capture_output=True, text=True, check=True)  # noqa: S602
    assert content_hash(minilm) == listing.stdout.split()[0]


def test_hash_sees_every_byte_and_name_of_the_model_but_nothing_else(folder: Path) -> None:
    check_folder(folder)
    before = content_hash(folder)
    (folder / "README.md").write_text("hello")
    assert content_hash(folder) == before
    (folder / "vocab.txt").write_text("a")
    with_vocabulary = content_hash(folder)
    assert with_vocabulary != before
    (folder / "vocab.txt").write_text("b")
    assert content_hash(folder) not in (before, with_vocabulary)


def test_pickle_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert refusal(folder) == "MODEL-403"
    torch.save({}, folder / "pytorch_model.bin")
    assert refusal(folder) == "SEC-603"


CODE = [{"auto_map": {"AutoModel": "x.py"}}, {"_attn_implementation": "org/kernel"}, {"attn_implementation": {"": "org/kernel:f"}}]
INSIDE = st.recursive(
    st.sampled_from(CODE),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, min_size=1, max_size=2) | st.lists(inner, min_size=1, max_size=2),
)


@given(INSIDE)
def test_custom_code_is_refused_at_any_depth(tmp_path_factory: pytest.TempPathFactory, hidden: object) -> None:
    folder = tmp_path_factory.mktemp("model")
    (folder / "model.safetensors").write_bytes(b"")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "more": hidden}).replace("auto_map", "auto\\u005fmap"))
    assert refusal(folder) == "SEC-604"


def test_ordinary_attention_is_no_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", "_attn_implementation": "sdpa", "_name_or_path": "org/model"}')
    check_folder(folder)


def test_custom_tokenizer_code_is_refused(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["t.T", null]}}')
    assert refusal(folder) == "SEC-604"


def test_an_index_must_stay_in_the_folder(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "model.safetensors"}}')
    check_folder(folder)
    index.write_text('{"weight_map": {"w": "../other/model.safetensors"}}')
    assert refusal(folder) == "SEC-605"
    index.write_text('{"weight_map": ["model.safetensors"]}')
    assert refusal(folder) == "MODEL-403"


def test_what_is_no_base_model(folder: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == "MODEL-403"
    (folder / "adapter_config.json").write_text("{}")
    assert refusal(folder) == "MODEL-404"
    (folder / "adapter_config.json").unlink()
    (folder / "config.json").write_text("not json")
    assert refusal(folder) == "MODEL-403"
