"""Text from a language model: prompts in, their continuations out, streamed or in batches. Used by ``simulations/predict.py``.

A prompt is tokenised as in training, so that nothing in it can pass for a mark of the chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from fedethos.data.prompts import Tokenize
from fedethos.errors import FedethosError


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How continuations are chosen: greedily at ``temperature`` 0, else drawn from ``seed``; at most ``max_new_tokens`` tokens."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class TextWriter:
    """A language model with its adapter, ready to answer."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    tokenize: Tokenize

    def stream(self, prompt: str, decoding: Decoding, say: Callable[[str], None]) -> None:
        """Answer one prompt; ``say`` gets the text piece by piece. DATA-185 as for ``write``."""
        (tokens,) = self._tokens([prompt], decoding)
        self._generate([tokens], decoding, _Said(self.tokenizer, say))

    def write(self, prompts: Sequence[str], decoding: Decoding, *, batch_size: int = 8) -> Iterator[list[tuple[int, str]]]:
        """Answers in batches, each with the place of its prompt; prompts of similar length go together.

        Raises
        ------
        FedethosError
            DATA-185 when a prompt and its answer would be longer than the model reads; before anything is written.
        """
        tokens = self._tokens(prompts, decoding)
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            yield list(zip(places, self._generate([tokens[place] for place in places], decoding, None), strict=True))

    def _tokens(self, prompts: Sequence[str], decoding: Decoding) -> list[list[int]]:
        tokens = [self.tokenize(prompt, ())[0] for prompt in prompts]
        room = int(self.model.config.max_position_embeddings) - decoding.max_new_tokens
        if over := sum(len(one) > room for one in tokens):
            raise FedethosError(
                "DATA-185",
                f"{over} of {len(tokens)} prompts are longer than the {max(room, 0):,} tokens that the model has for them.",
                where="--prompt, --file",
                why=f"The model reads {room + decoding.max_new_tokens:,} tokens, of which the answer may need {decoding.max_new_tokens:,}.",
                fix="Shorten the prompt, or lower --max-new-tokens.",
            )
        return tokens

    def _generate(self, tokens: Sequence[list[int]], decoding: Decoding, streamer: TextStreamer | None) -> list[str]:
        ids, mask = _padded(tokens, int(self.tokenizer.pad_token_id))
        choice = {"do_sample": True, "temperature": decoding.temperature} if decoding.temperature > 0.0 else {"do_sample": False}
        on_gpu = self.model.device.type == "cuda"
        with torch.inference_mode(), torch.random.fork_rng(devices=[self.model.device] if on_gpu else []):
            torch.manual_seed(decoding.seed)
            out = self.model.generate(
                input_ids=ids.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=decoding.max_new_tokens,
                pad_token_id=int(self.tokenizer.pad_token_id),
                eos_token_id=self.tokenizer.eos_token_id,
                streamer=streamer,
                **choice,
            )
        return [text.strip() for text in self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


class _Said(TextStreamer):  # type: ignore[misc]
    """Hands finished pieces of text to a function, without the prompt and without marks."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._say(text)


def _padded(tokens: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and mask int64[b, t], padded on the left, so that every answer begins at the same place."""
    width = max(map(len, tokens))
    ids = torch.tensor([[pad] * (width - len(one)) + one for one in tokens])
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in tokens])
    return ids, mask
