"""What a base-model folder may hold, and its content hash. Imports no deep-learning library.

Only data is accepted: safetensors weights, JSON configuration, tokenizer files. Weights in pickle files and
configurations that name custom code can run code when they are opened, and are refused.
Next: ``fedethos.models.base`` loads such a folder, ``fedethos.models.assets`` brings one.
"""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path

from fedethos.errors import FedethosError

MODEL_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "*.model",  # sentencepiece
)
_GGUF = b"GGUF"
PICKLE_FILES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def is_model_file(name: str) -> bool:
    """Whether a file of this name belongs to a base model and its hash."""
    return any(fnmatch(name, pattern) for pattern in MODEL_FILES)


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does."""
    with path.open("rb") as stream:
        return stream.read(len(_GGUF)) == _GGUF


def model_files(folder: Path) -> list[Path]:
    """The model's files in ``folder`` (no sub-folders), sorted by name."""
    return sorted((path for path in folder.iterdir() if path.is_file() and is_model_file(path.name)), key=lambda path: path.name)


def file_hash(path: Path) -> str:
    """SHA-256 of one file, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(folder: Path) -> str:
    """SHA-256 over the names and bytes of the model's files, 64 hex digits.

    It is the hash of ``sha256sum``'s own listing, so that anybody can compute it without fedethos:
    ``LC_ALL=C sha256sum FILES-SORTED-BY-NAME | sha256sum``.
    """
    listing = "".join(f"{file_hash(path)}  {path.name}\n" for path in model_files(folder))
    return hashlib.sha256(listing.encode()).hexdigest()


def check_folder(folder: Path) -> None:
    """Refuse a folder that is no base model, or that could run code when it is opened.

    Raises
    ------
    FedethosError
        MODEL-403 not a base model, MODEL-404 an adapter, SEC-603 pickle weights, SEC-604 custom code,
        SEC-605 weights outside the folder.
    """
    if not (folder / "config.json").is_file():
        raise _no_model(folder, "The folder has no config.json." if folder.exists() else "There is no such file or folder.")
    if (folder / "adapter_config.json").exists():
        raise FedethosError(
            "MODEL-404",
            "The folder holds an adapter, not a base model.",
            where=str(folder),
            fix="Give the folder of the base model that the adapter was trained on.",
        )
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).is_file() and _names_code(_read_json(folder / name)):
            raise FedethosError(
                "SEC-604",
                "The model's configuration names custom code (auto_map, or a kernel from a hub).",
                where=str(folder / name),
                why="Loading it would run code that came with the model; fedethos never does.",
                fix="Use a model whose architecture is part of the transformers library.",
            )
    _check_weights(folder)


def _check_weights(folder: Path) -> None:
    names = {path.name for path in model_files(folder)}
    if not any(name.endswith(".safetensors") for name in names):
        if any(fnmatch(path.name, pattern) for path in folder.iterdir() for pattern in PICKLE_FILES):
            raise FedethosError(
                "SEC-603",
                "The model's weights are in a pickle file.",
                where=str(folder),
                why="A pickle file can run code when it is opened.",
                fix="Convert the weights to safetensors (save_pretrained does) on a machine without records.",
            )
        raise _no_model(folder, "The folder has no *.safetensors file.")
    for name in sorted(name for name in names if name.endswith(".index.json")):
        if not _shards(folder / name) <= names:
            raise FedethosError(
                "SEC-605",
                "The weight index names a file that is not in the folder.",
                where=str(folder / name),
                why="A file outside the folder is not covered by the content hash.",
                fix="Bring the complete model, with all shards in one folder.",
            )


def _shards(index: Path) -> set[str]:
    """Names of the weight files that a safetensors index refers to."""
    content = _read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise _no_model(index, "The weight index has no weight_map.")
    return {str(shard) for shard in weight_map.values()}


def _names_code(value: object) -> bool:
    """Whether a configuration has, at any depth, an ``auto_map`` or an ``…_implementation`` that is a repository ("org/kernel")."""
    if isinstance(value, list):
        return any(map(_names_code, value))
    if not isinstance(value, dict):
        return False
    return (
        "auto_map" in value
        or any(key.endswith("_implementation") and "/" in json.dumps(choice) for key, choice in value.items())
        or any(map(_names_code, value.values()))
    )


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise _no_model(path, "The file is not valid JSON.") from None


def _no_model(where: Path, what: str) -> FedethosError:
    return FedethosError(
        "MODEL-403",
        what,
        where=str(where),
        why="A base model is a folder with config.json, *.safetensors and the tokenizer's files.",
        fix="Give such a folder, or an asset (`fedethos models list`).",
    )
