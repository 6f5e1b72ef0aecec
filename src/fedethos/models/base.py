"""Loading a frozen base model from a local folder. Next: ``fedethos.models.adapter`` attaches LoRA to it.

Nothing is downloaded and no code of the model runs: safetensors only, no ``trust_remote_code``, no hub.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fedethos.errors import FedethosError
from fedethos.models.assets import public_name
from fedethos.models.content import check_folder, content_hash

__all__ = [
    "LoadedBase",
    "approved_hash",
    "content_hash",
    "head_modules",
    "load_base",
    "load_tokenizer",
    "load_weights",
    "quiet",
    "require_complete",
    "weights_hash",
]


FromPretrained = Callable[..., tuple[PreTrainedModel, Mapping[str, Iterable[str]]]]


@dataclass(frozen=True)
class LoadedBase:
    """A base model in eval mode, without gradients, on the CPU and in float32 unless it was asked for otherwise; ``sha256`` is the
    folder's content hash; ``fresh_head``: the folder brings no head, so that it was drawn here."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sha256: str
    fresh_head: bool = False


def load_base(folder: Path, *, num_labels: int, sha256: str | None, seed: int = 0) -> LoadedBase:
    """Load ``folder`` as a sequence classifier with ``num_labels`` classes.

    A head that the folder does not bring is drawn from ``seed`` alone: the same on every machine, whatever ran before.

    Raises
    ------
    FedethosError
        SEC-601 ``sha256`` differs, SEC-603 pickle weights, SEC-604 custom code, SEC-605 weights outside the folder, MODEL-403 no
        model, MODEL-404 an adapter, MODEL-408 transformers cannot load it, MODEL-409 incomplete weights, MODEL-415 weights not finite.
    """
    digest = approved_hash(folder, sha256)
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model, missing = _classifier(folder, num_labels)
        tokenizer = load_tokenizer(folder)
    heads = tuple(f"{name}." for name in head_modules(model))
    require_complete(folder, model, {name for name in missing if not name.startswith(heads)})
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    model.name_or_path = public_name(digest)  # PEFT copies it into adapter_config.json, where a machine's path has no place
    fresh_head = any(name.startswith(heads) for name in missing)
    return LoadedBase(model.eval().requires_grad_(False), tokenizer, digest, fresh_head)


def approved_hash(folder: Path, sha256: str | None) -> str:
    """Content hash of a base model's folder. Errors as for ``load_base``, as far as they are about the folder."""
    check_folder(folder)
    digest = content_hash(folder)
    if sha256 is not None and sha256 != digest:
        raise FedethosError(
            "SEC-601",
            f"The base model's content hash is {digest}, the job says {sha256}.",
            where=str(folder),
            why="Sites approved another base model.",
            fix="Bring the approved model, or ask for a job with this hash.",
        )
    return digest


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of the modules with parameters outside the pretrained body: the classification head."""
    return [
        name for name, child in model.named_children() if name != model.base_model_prefix and next(child.parameters(), None) is not None
    ]


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of the base model's tensors, 64 hex digits.

    The adapter and the trained copy of the head are left out and PEFT's wrapping is taken off the names, so that the hash of a base
    model is the same before an adapter is attached and after the adapter was trained.
    """
    tensors = {}
    for name, tensor in model.state_dict().items():
        parts = name.removeprefix("base_model.model.").split(".")
        if "modules_to_save" not in parts and not any(part.startswith("lora_") for part in parts):
            tensors[".".join(part for part in parts if part not in ("base_layer", "original_module"))] = tensor
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _classifier(folder: Path, num_labels: int) -> tuple[PreTrainedModel, set[str]]:
    load = partial(AutoModelForSequenceClassification.from_pretrained, num_labels=num_labels, dtype=torch.float32)
    return load_weights(load, folder, as_what=f"a classifier with {num_labels} labels")


def load_weights(load: FromPretrained, folder: Path, *, as_what: str) -> tuple[PreTrainedModel, set[str]]:
    """The model and the names of the tensors that the folder does not hold. ``load``: a ``from_pretrained`` of transformers.

    MODEL-408 when it cannot be loaded ``as_what``.
    """
    refusals = []
    for attention in ("sdpa", "eager"):  # a few architectures lack the faster sdpa
        try:
            model, info = load(
                folder,
                attn_implementation=attention,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
            return model, set(info["missing_keys"])
        except Exception as error:  # whatever a damaged or foreign folder makes the library raise
            refusals.append(error)
    raise _cannot_load(folder, as_what, refusals[0]) from refusals[0]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer. MODEL-408 when there is none."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise _cannot_load(folder, "a tokenizer", error) from error
    return tokenizer


def _cannot_load(folder: Path, as_what: str, error: Exception) -> FedethosError:
    return FedethosError(
        "MODEL-408",
        f"The transformers library could not load the folder as {as_what} ({type(error).__name__}).",
        where=str(folder),
        fix="Use a model of a known architecture with its tokenizer's files, and a head of as many labels as the job has, or none.",
    )


def require_complete(folder: Path, model: PreTrainedModel, missing: set[str]) -> None:
    """Refuse a model that lacks the weights named ``missing`` (MODEL-409), or has some that are not finite (MODEL-415)."""
    if absent := sorted(missing):
        raise FedethosError(
            "MODEL-409",
            f"The folder lacks weights of the model's body: {', '.join(absent[:3])}{', …' if len(absent) > 3 else ''}.",
            where=str(folder),
            why="They would be random and frozen, and different wherever the adapter is used later.",
            fix="Use a base model that brings all weights.",
        )
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise FedethosError(
            "MODEL-415",
            "The base model's weights hold NaN or infinity.",
            where=str(folder),
            fix="Bring the model again, or use another one.",
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's progress bars and its report about a new head, which is expected here."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
