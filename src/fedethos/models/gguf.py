"""GGUF (llama.cpp's file of quantised weights) to a checked folder of safetensors, once. Next: ``fedethos.models.assets`` keeps the folder.

transformers reads GGUF and dequantises it, but then refuses to save it, and is slow: the tensors go into a fresh model of the same
configuration here, in float32, so that nothing is lost. The folder is the same, byte by byte, for the same file and library versions.
"""

from __future__ import annotations

import json
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig

from fedethos.errors import FedethosError
from fedethos.models.base import quiet
from fedethos.models.content import is_gguf

_NOT_OF_THE_MODEL = ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "is_local", "local_files_only")


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model in ``source`` into the new ``folder``: float32 safetensors, configuration and tokenizer.

    Raises
    ------
    FedethosError
        MODEL-486 an architecture that transformers cannot read from GGUF; MODEL-487 a file that is damaged or not GGUF.
    """
    if not is_gguf(source):
        raise _damaged(source, "it does not begin as GGUF does")
    architecture = _architecture(source)
    with quiet(), redirect_stderr(StringIO()):  # a progress bar of transformers that nothing switches off
        try:
            loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name, local_files_only=True)
        except (ValueError, NotImplementedError) as error:
            raise _unknown(source, architecture) if "not supported" in str(error) else _damaged(source, type(error).__name__) from error
        except Exception as error:  # whatever a damaged file makes the readers raise
            raise _damaged(source, type(error).__name__) from error
        model = AutoModelForCausalLM.from_config(_plain(loaded.config))
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for name in ("config.json", "tokenizer_config.json"):
        _settle(folder / name)
    (folder / "generation_config.json").unlink(missing_ok=True)


def _architecture(source: Path) -> str:
    from gguf import GGUFReader

    try:
        field = GGUFReader(source).get_field("general.architecture")
        return str(field.contents()) if field is not None else "unknown"
    except Exception as error:  # the reader checks little
        raise _damaged(source, type(error).__name__) from error


def _plain(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a model that never was quantised: with ``quantization_config`` transformers refuses to save."""
    settings = {key: value for key, value in config.to_dict().items() if key not in _NOT_OF_THE_MODEL}
    plain: PreTrainedConfig = type(config)(**settings)
    plain.architectures = [transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    return plain


def _settle(path: Path) -> None:
    """Take out of a configuration what is not of the model, such as the library's version: its hash is of the model alone."""
    settings = {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key not in _NOT_OF_THE_MODEL}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")


def _unknown(source: Path, architecture: str) -> FedethosError:
    return FedethosError(
        "MODEL-486",
        f"The architecture {architecture} cannot be read from GGUF.",
        where=str(source),
        why="The transformers library does not know how its tensors are laid out.",
        fix="Bring the model as a folder with config.json and *.safetensors, or use a Llama, Mistral, Qwen or Phi GGUF.",
    )


def _damaged(source: Path, why: str) -> FedethosError:
    return FedethosError(
        "MODEL-487",
        "The GGUF file cannot be read.",
        where=str(source),
        why=f"It is damaged, cut off, or of an unknown kind ({why}).",
        fix="Copy or download the file again and compare its SHA-256 with its publisher's.",
    )
