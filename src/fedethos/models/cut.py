"""Cutting an adapted transformer below its first adapter: a frozen prefix, and a tail that trains.

Both parts are shallow copies of the library's own model with a shorter list of layers, so that masks, rotary embeddings, pooler and
head stay the library's code, and every Parameter is the very object of the full model. Where the head reads the first token only, the
last layer computes no other (``first_token.py``). Only architectures that were looked at are
cut (``_LAYOUTS``): an embedding that is scaled, or a mask that depends on the layer's index, would go wrong silently elsewhere.
Next: ``fedethos.models.prefix`` computes the prefix once a record.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedethos.errors import FedethosError
from fedethos.models.first_token import ATTENTION_OUTPUT, SELF_ATTENTION, FirstTokenAttention, FirstTokenOutput


@dataclass(frozen=True)
class _Layout:
    """Where the parts are inside the pretrained body. ``after``: what the body applies to the last hidden states."""

    embeddings: str
    layers: str
    after: str | None
    pools_last: bool  # the head reads the last token (decoders), not the first
    narrows: bool = False  # the last layer can be computed for the first token alone (``first_token.py``)


_BERT = _Layout("embeddings", "encoder.layer", after="pooler", pools_last=False, narrows=True)
_LAYOUTS = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": _Layout("embeddings", "transformer.layer", after=None, pools_last=False),
    "llama": _Layout("embed_tokens", "layers", after="norm", pools_last=True),
}


def tail_start(model: PeftModel) -> int:
    """The first layer with an adapter, so that all layers below can be cached. 0: nothing to cache, or an unknown architecture."""
    layout = _LAYOUTS.get(model.config.model_type)
    if layout is None:
        return 0
    body = _body(model)
    if _is_adapted(body.get_submodule(layout.embeddings)):
        return 0
    layers = _layers(body, layout)
    return next((index for index, layer in enumerate(layers) if _is_adapted(layer)), len(layers))


class FrozenPrefix(nn.Module):
    """Embeddings and the layers below the first adapter: (input_ids, attention_mask), int64[b, t], to hidden states float32[b, t, h].

    ``positions``: ``position_ids`` of a decoder whose rows are no plain text (``fedethos.data.prompts``).
    """

    def __init__(self, model: PeftModel) -> None:
        super().__init__()
        layout, start = _require_cut(model)
        body = _body(model)
        body = _with(body, layout.layers, _layers(body, layout)[:start])
        self.body = _with(body, layout.after, nn.Identity()) if layout.after else body

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **positions: Tensor) -> Tensor:
        hidden: Tensor = self.body(input_ids=input_ids, attention_mask=attention_mask, **positions).last_hidden_state
        return hidden


def tail(model: PeftModel) -> nn.Module:
    """The rest of ``model``: (inputs_embeds float32[b, t, h], attention_mask int64[b, t]) to logits float32[b, labels].

    It shares all parameters with ``model``. Padding is on the right. MODEL-461 where there is nothing to cut.
    """
    layout, start = _require_cut(model)
    classifier = model.get_base_model()
    prefix = classifier.base_model_prefix
    layers = _layers(_body(model), layout)[start:]
    rest = _with(classifier, f"{prefix}.{layout.layers}", _narrowed(layers) if layout.narrows and len(layers) else layers)
    rest = _with(rest, f"{prefix}.{layout.embeddings}", _PassThrough())
    return _LastTokenTail(rest.get_submodule(prefix), rest.get_submodule("score")) if layout.pools_last else _FirstTokenTail(rest)


def causal_tail(model: PeftModel) -> PreTrainedModel:
    """The rest of a language model, which takes ``inputs_embeds`` in place of ``input_ids``. It shares all parameters with ``model``.

    MODEL-461 where there is nothing to cut.
    """
    layout, start = _require_cut(model)
    causal = model.get_base_model()
    return cast(PreTrainedModel, _with(causal, f"{causal.base_model_prefix}.{layout.layers}", _layers(_body(model), layout)[start:]))


def _narrowed(layers: nn.ModuleList) -> nn.ModuleList:
    """The same layers, the last of them for the first token alone."""
    *lower, last = layers
    for path, narrow in ((SELF_ATTENTION, FirstTokenAttention), (ATTENTION_OUTPUT, FirstTokenOutput)):
        last = _with(last, path, narrow(last.get_submodule(path)))
    return nn.ModuleList([*lower, last])


class _FirstTokenTail(nn.Module):
    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.classifier(inputs_embeds=inputs_embeds, attention_mask=attention_mask).logits
        return logits


class _LastTokenTail(nn.Module):
    """The library's decoder head finds the last token by its id, which is not known here: take it from the mask."""

    def __init__(self, body: nn.Module, score: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.score = score

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(inputs_embeds=inputs_embeds, attention_mask=attention_mask, use_cache=False).last_hidden_state
        last = attention_mask.sum(dim=1) - 1
        logits: Tensor = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last])
        return logits


class _PassThrough(nn.Module):
    """Stands for the embeddings: what was cached comes in as ``inputs_embeds`` and goes on as it is."""

    def forward(self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, *_: object, **__: object) -> Tensor | None:
        return inputs_embeds


def _require_cut(model: PeftModel) -> tuple[_Layout, int]:
    start = tail_start(model)
    if start == 0:
        raise FedethosError(
            "MODEL-461",
            "There is no frozen layer to cache below the first adapter.",
            where="training.cache_frozen_prefix",
            why=f"The lowest layer is adapted, or fedethos does not know how to cut this architecture (known: {', '.join(_LAYOUTS)}).",
            fix="Adapt upper layers only (lora.layers_to_transform), or write cache_frozen_prefix: auto.",
        )
    return _LAYOUTS[model.config.model_type], start


def _body(model: PeftModel) -> PreTrainedModel:
    classifier = model.get_base_model()
    return cast(PreTrainedModel, getattr(classifier, classifier.base_model_prefix))


def _layers(body: nn.Module, layout: _Layout) -> nn.ModuleList:
    return cast(nn.ModuleList, body.get_submodule(layout.layers))


def _is_adapted(module: nn.Module) -> bool:
    """Whether it holds an adapter (even one that does not train) or anything that trains."""
    return any(isinstance(part, BaseTunerLayer) for part in module.modules()) or any(p.requires_grad for p in module.parameters())


def _with(module: nn.Module, path: str, child: nn.Module) -> nn.Module:
    """A copy of ``module`` that shares everything with it but the sub-module at the dotted ``path``, which is ``child``."""
    name, _, rest = path.partition(".")
    clone = copy.copy(module)
    for key, value in vars(module).items():
        if isinstance(value, dict):  # registries of sub-modules, parameters and hooks: a change to the copy must not reach the original
            clone.__dict__[key] = value.copy()
    clone._modules[name] = _with(module.get_submodule(name), rest, child) if rest else child
    return clone
