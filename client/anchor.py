"""The pull of a language model towards its base, on text that the base writes itself (``training.anchor``).

Learning to answer one kind of question makes a model worse at everything else, and noise makes it worse everywhere. The gradient of
KL(base || model) on such text pulls back what the records do not ask for (the penalty of Ziegler et al. 2019, arXiv:1909.08593,
equation 2, with the base's own text and the other direction of KL, as in distillation). It reads the base model and the adapter, which
is known already from noisy steps and the request, and no record: it comes after clipping and noise, and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedethos.client.examples import Indices, Inputs
from fedethos.models.language import answer_states, without_adapter
from fedethos.token_loss import token_kl_divergence


class Anchor:
    """Parameters
    ----------
    model : PeftModel
        With its adapter.
    forward : PeftModel or PreTrainedModel
        What is computed in training: ``model``, or its tail above the frozen prefix.
    texts : Inputs
        What the base wrote, as ``forward`` takes it.
    kl_coef : float
        Multiplies the divergence.
    batch_size : int
        Texts that each step reads.
    """

    def __init__(self, model: PeftModel, forward: PeftModel | PreTrainedModel, texts: Inputs, *, kl_coef: float, batch_size: int) -> None:
        self.kl_coef = kl_coef
        self._model, self._forward, self._texts = model, forward, texts
        count = len(texts.lengths)
        self._batches = [np.arange(start, min(start + batch_size, count)) for start in range(0, count, batch_size)]
        with torch.no_grad(), without_adapter(model):
            self._base = [self._states(batch) for batch in self._batches]

    def gradient(self, step: int, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Of ``kl_coef`` times the mean KL(base || model) in nats per token, as the model stands; by name, in each parameter's shape.

        ``step`` chooses the texts, in turn.
        """
        turn = step % len(self._batches)
        layer = self._model.get_base_model().get_output_embeddings()
        divergence = token_kl_divergence(self._states(self._batches[turn]), layer, self._base[turn]).mean()
        found = torch.autograd.grad(self.kl_coef * divergence, list(parameters.values()))
        return dict(zip(parameters, found, strict=True))

    def _states(self, batch: Indices) -> Tensor:
        inputs = {name: tensor.to(self._model.device) for name, tensor in self._texts.batch(batch).items()}
        wanted = {name: inputs[name] for name in inputs if name not in ("target", "slot", "answer_tokens")}
        return answer_states(self._forward, **wanted)
