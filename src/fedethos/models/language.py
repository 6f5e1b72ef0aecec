"""Language models: the likelihood of answers after their prompts, with the output layer evaluated at answers' tokens only.

Loading is in ``fedethos.models.language_base``; rows of tokens come from ``fedethos.data.prompts``. Everything here depends on one
record's own row, so that clipping bounds a person's influence: likelihoods are sums or means over an answer's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedethos.errors import FedethosError
from fedethos.token_loss import token_cross_entropy

ABSENT = -1e9
"""Score of an option that a record does not have. Finite, so that differences of two stay a number."""

_TARGETS_AT_ONCE = 512  # answers' tokens whose logits over the vocabulary are in memory together; training holds fewer (token_loss.py)


@dataclass(frozen=True)
class AnswerScores:
    """``log_likelihood`` float32[b, k] in nats, ``tokens`` int64[b, k] (0: no such answer), ``margin`` float32[b, k]: the least by which
    one of the answer's tokens beats the likeliest other token, above 0 where greedy decoding would write exactly this answer. Zero while
    gradients are recorded: training does not need it."""

    log_likelihood: Tensor
    tokens: Tensor
    margin: Tensor

    @property
    def mean(self) -> Tensor:
        """Log-likelihood per token, float32[b, k]; ``ABSENT`` where there is no such answer."""
        return torch.where(self.tokens > 0, self.log_likelihood / self.tokens.clamp(min=1), ABSENT)


def score_answers(
    model: PeftModel | PreTrainedModel,
    *,
    position_ids: Tensor,
    attention_mask: Tensor,
    source: Tensor,
    target: Tensor,
    slot: Tensor,
    answer_tokens: Tensor,
    **tokens: Tensor,
) -> AnswerScores:
    """Score the answers of a batch; shapes as in ``PromptTable.batch``. ``tokens``: ``input_ids``, or ``inputs_embeds`` where the layers
    below were computed before (``language_prefix.py``)."""
    states = answer_states(model, position_ids=position_ids, attention_mask=attention_mask, source=source, **tokens)
    output_layer = _causal(model).get_output_embeddings()
    sums = states.new_zeros(answer_tokens.numel(), dtype=torch.float32)
    if torch.is_grad_enabled():
        sums = sums.index_add(0, slot, -token_cross_entropy(states, output_layer, target))
        return AnswerScores(sums.view_as(answer_tokens), answer_tokens, torch.zeros_like(sums).view_as(answer_tokens))
    margins = torch.full_like(sums, torch.inf)
    for start in range(0, len(source), _TARGETS_AT_ONCE):
        part = slice(start, start + _TARGETS_AT_ONCE)
        logits = output_layer(states[part]).float()
        sums = sums.index_add(0, slot[part], -F.cross_entropy(logits, target[part], reduction="none"))
        margins.scatter_reduce_(0, slot[part], _margin(logits, target[part]), "amin")
    margins = torch.where(margins.isfinite(), margins, 0.0)
    return AnswerScores(sums.view_as(answer_tokens), answer_tokens, margins.view_as(answer_tokens))


def answer_states(
    model: PeftModel | PreTrainedModel, *, position_ids: Tensor, attention_mask: Tensor, source: Tensor, **tokens: Tensor
) -> Tensor:
    """The hidden state that each token of an answer is predicted from, float[m, h]."""
    causal = _causal(model)
    mask = additive_mask(attention_mask, causal)
    hidden: Tensor = causal.base_model(position_ids=position_ids, attention_mask=mask, use_cache=False, **tokens).last_hidden_state
    return hidden.reshape(-1, hidden.shape[-1])[source]


def _causal(model: PeftModel | PreTrainedModel) -> PreTrainedModel:
    causal: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model
    return causal


def _margin(logits: Tensor, target: Tensor) -> Tensor:
    own = logits.gather(1, target[:, None])
    return own[:, 0] - logits.scatter(1, target[:, None], -torch.inf).amax(dim=1)


def additive_mask(visible: Tensor, model: PreTrainedModel) -> Tensor:
    """A mask bool[b, 1, t, t] as numbers to add to attention scores, which every attention implementation takes; int64[b, t] stays."""
    if visible.dim() == 2:
        return visible
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


class LanguageModel(nn.Module):
    """``forward(**PromptTable.batch(indices))`` gives what a task trains on, float32[b, columns], by its ``outputs``.

    ``outputs(scores, reference)``: from the batch's ``AnswerScores``; ``reference`` float32[b, k] are the untouched base model's
    log-likelihoods, where the batch brings them.
    """

    def __init__(self, model: PeftModel | PreTrainedModel, outputs: Callable[[AnswerScores, Tensor | None], Tensor]) -> None:
        super().__init__()
        self.model = model
        self._outputs = outputs

    def forward(self, reference: Tensor | None = None, **batch: Tensor) -> Tensor:
        return self._outputs(score_answers(self.model, **batch), reference)


@contextmanager
def without_adapter(model: PeftModel) -> Iterator[None]:
    """Inside, ``model`` computes what its base model computes.

    PEFT's own ``disable_adapter`` switches ``requires_grad`` of every factor on when it ends, of frozen ones too.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def require_plain_head(model: PreTrainedModel) -> None:
    """Refuse a model whose logits are more than its output layer on its last hidden state (soft caps, scaled logits).

    Raises MODEL-484.
    """
    tokens = torch.arange(min(8, model.config.vocab_size), device=model.device)[None]
    with torch.inference_mode():
        whole = model(input_ids=tokens, use_cache=False).logits
        apart = model.get_output_embeddings()(model.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
    if whole.shape != apart.shape or not torch.allclose(whole.float(), apart.float(), rtol=1e-3, atol=1e-3):
        raise FedethosError(
            "MODEL-484",
            "The base model's logits are not its output layer on its last hidden state.",
            where="model.path",
            why="Likelihoods are computed at the tokens of answers only, which would be wrong for this architecture.",
            fix="Use a model with a plain output layer, such as a Llama, Qwen, Mistral or SmolLM.",
        )
