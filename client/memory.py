"""Out of memory: the micro-batch is halved and the step done again.

The logical batch is fixed before it is cut, so its clipping, its noise and its cost in epsilon stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from fedethos.errors import FedethosError

Result = TypeVar("Result")


class TokenBudget:
    """How many padded tokens one forward pass may hold. It only shrinks, and stays small for the rounds that follow."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def fitted(self, work: Callable[[int], Result], recover: Callable[[], None] = lambda: None) -> Result:
        """``work(tokens)``, from the beginning with half as many each time that memory runs out, and after ``recover()``.

        NODE-541 when it runs out at one token, that is with one unit in each pass.
        """
        while True:
            try:
                return work(self.tokens)
            except Exception as failure:
                if not is_out_of_memory(failure):
                    raise
            self._halve()  # outside of the handler: the exception held the tensors of the failed pass
            recover()

    def _halve(self) -> None:
        if self.tokens <= 1:
            raise FedethosError(
                "NODE-541",
                "Not even one person's records fit into the memory of this site.",
                where="memory_gb",
                why="A person is clipped as a whole, so the micro-batch cannot be cut any further.",
                fix="Give the node more memory, or plan a shorter model.max_length or training.gradient_checkpointing.",
            )
        self.tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(error: Exception) -> bool:
    """On a GPU (``torch.OutOfMemoryError``) or on a CPU, whose allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
