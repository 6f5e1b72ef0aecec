"""The last layer of an encoder whose head reads the first token only: what it computes for the others would be thrown away.

Keys and values need every token; query, attention output and feed-forward only the first. With short texts that leaves about a sixth
of the layer's work, and the numbers that are left are the same. The parts are the library's own modules, shared, with two thin
wrappers in a copy of the layer. ``fedethos.models.prefix`` compares the result with the whole model before it is used.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

SELF_ATTENTION, ATTENTION_OUTPUT = "attention.self", "attention.output"  # where they are in a layer of BERT and its relatives


class FirstTokenAttention(nn.Module):
    """``BertSelfAttention`` of transformers for the first token: hidden states [b, t, h] to ([b, 1, h], None)."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.query, self.key, self.value = (attention.get_submodule(name) for name in ("query", "key", "value"))
        self._heads = int(attention.num_attention_heads)  # type: ignore[arg-type]
        self._scaling = float(attention.scaling)  # type: ignore[arg-type]

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **_: object) -> tuple[Tensor, None]:
        query = self._by_head(self.query(hidden_states[:, :1]))
        key, value = self._by_head(self.key(hidden_states)), self._by_head(self.value(hidden_states))
        mask = None if attention_mask is None else attention_mask[..., :1, :]
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=self._scaling)
        return mixed.transpose(1, 2).flatten(2), None

    def _by_head(self, projected: Tensor) -> Tensor:
        """[b, t, h] to [b, heads, t, h / heads]."""
        return projected.view(*projected.shape[:2], self._heads, -1).transpose(1, 2)


class FirstTokenOutput(nn.Module):
    """``BertSelfOutput`` of transformers: adds the first token's hidden state, where the whole layer adds everybody's."""

    def __init__(self, output: nn.Module) -> None:
        super().__init__()
        self.output = output

    def forward(self, attended: Tensor, hidden_states: Tensor) -> Tensor:
        result: Tensor = self.output(attended, hidden_states[:, :1])
        return result
