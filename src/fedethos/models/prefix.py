"""The frozen prefix, computed once a record: with adapters on upper layers only, everything below gives the same output every time.

Hidden states lie end to end in a memory-mapped file that loses its name as soon as it is mapped, so that nothing stays behind,
whatever ends the process. Needs a POSIX system. Next: the trainer reads batches from ``HiddenCache`` and feeds ``tail(model)``.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedethos.data.tokens import TokenTable
from fedethos.errors import FedethosError
from fedethos.models.cut import FrozenPrefix, tail, tail_start

__all__ = ["FrozenPrefix", "HiddenCache", "build_cache", "tail", "tail_start"]

Indices = npt.NDArray[np.int64]

_DTYPES = {np.dtype(np.float32): torch.float32, np.dtype(np.float16): torch.float16}


class HiddenCache:
    """Hidden states of n records below the first adapter. A context manager: leaving it gives the disk space back."""

    def __init__(self, hidden: Tensor, offsets: Indices) -> None:
        self._hidden = hidden  # [T, h]
        self._offsets = offsets  # int64[n + 1]

    @property
    def lengths(self) -> Indices:
        """Tokens of each record, int64[n]."""
        return np.diff(self._offsets)

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Hidden states float32[b, t, h], zero where padded on the right, and the attention mask int64[b, t], on the CPU."""
        rows = [self._hidden[self._offsets[index] : self._offsets[index + 1]] for index in indices]
        lengths = self.lengths[indices]
        mask = torch.from_numpy((np.arange(lengths.max(initial=0)) < lengths[:, None]).astype(np.int64))
        hidden = pad_sequence(rows, batch_first=True) if rows else self._hidden.new_zeros(0, 0, self._hidden.shape[1])
        return hidden.float(), mask

    def close(self) -> None:
        """Unmap the file, which frees its space. Any later use fails."""
        self.__dict__.pop("_hidden", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def build_cache(
    model: PeftModel, table: TokenTable, *, folder: Path, dtype: npt.DTypeLike = np.float32, batch_tokens: int = 2048
) -> HiddenCache:
    """Run the frozen layers once over all records.

    Parameters
    ----------
    folder : Path
        Where the file is mapped; T · h · 4 bytes (float32) or 2 (float16) for T tokens of width h.
    dtype : float32 or float16
        float16 is approximate.
    batch_tokens : int
        Padded tokens per forward pass. Measured on MiniLM: 1,024 to 4,096 are the fastest on a CPU.

    Raises
    ------
    FedethosError
        MODEL-461 nothing to cache, MODEL-462 not enough disk, MODEL-463 not finite in this dtype, MODEL-464 the cut model computes
        something else than the whole one.
    """
    prefix = FrozenPrefix(model).eval()
    size = int(table.offsets[-1])
    hidden = hidden_file(folder, size, model.config.hidden_size, dtype)
    with torch.inference_mode():
        _require_same(model, prefix, table)
        for indices in _batches(table.lengths, batch_tokens):
            input_ids, mask = table.batch(indices)
            states = prefix(input_ids.to(model.device), mask.to(model.device)).to(hidden)
            require_finite(states[mask.bool()])
            for row, index in zip(states, indices, strict=True):
                begin, end = table.offsets[index], table.offsets[index + 1]
                hidden[begin:end] = row[: end - begin]
    return HiddenCache(hidden, table.offsets)


def _batches(lengths: Indices, batch_tokens: int) -> Iterator[Indices]:
    """Record indices by falling length (the largest batch comes first, and padding is rare), about ``batch_tokens`` a batch."""
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        stop = start + max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start:stop]
        start = stop


def _require_same(model: PeftModel, prefix: FrozenPrefix, table: TokenTable) -> None:
    """Compare the cut model with the whole one on the shortest and the longest record."""
    if len(table) == 0:
        return
    input_ids, mask = (part.to(model.device) for part in table.batch(np.array([table.lengths.argmin(), table.lengths.argmax()])))
    was_training = model.training
    model.eval()
    whole = model(input_ids=input_ids, attention_mask=mask).logits
    cut = tail(model)(inputs_embeds=prefix(input_ids, mask), attention_mask=mask)
    model.train(was_training)
    require_same(whole, cut)


def require_finite(states: Tensor) -> None:
    """MODEL-463 for hidden states with a NaN or an infinity."""
    if not torch.isfinite(states).all():
        raise FedethosError(
            "MODEL-463",
            f"Hidden states are not finite in {str(states.dtype).removeprefix('torch.')}.",
            where="training.cache_dtype",
            fix="Write cache_dtype: float32; if it is that already, write cache_frozen_prefix: off.",
        )


def require_same(whole: Tensor, cut: Tensor) -> None:
    """MODEL-464 when the cut model's outputs are not those of the whole one."""
    if not torch.allclose(whole, cut, rtol=1e-3, atol=1e-4):
        raise FedethosError(
            "MODEL-464",
            "The model with cached layers computes something else than the whole model.",
            where="training.cache_frozen_prefix",
            fix="Write cache_frozen_prefix: off, and report the model's architecture.",
        )


def hidden_file(folder: Path, tokens: int, width: int, dtype: npt.DTypeLike) -> Tensor:
    """Zeros [tokens, width] in a private temporary file. MODEL-462 when the disk is too full."""
    return _private_file(folder, tokens * width, _DTYPES[np.dtype(dtype)]).view(tokens, width)


def _private_file(folder: Path, count: int, dtype: torch.dtype) -> Tensor:
    """``count`` zeros mapped from a file (mode 0600 in a folder of mode 0700) whose name is gone when this returns."""
    if count == 0:
        return torch.empty(0, dtype=dtype)
    size = count * dtype.itemsize
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < size:
        raise _disk_full(folder, size)
    with tempfile.TemporaryDirectory(prefix=".hidden-", dir=folder) as private:
        path = Path(private) / "states"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _reserve(descriptor, size)
        except OSError:
            raise _disk_full(folder, size) from None
        finally:
            os.close(descriptor)
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype)


def _reserve(descriptor: int, size: int) -> None:
    if sys.platform == "darwin":
        os.ftruncate(descriptor, size)
    else:
        os.posix_fallocate(descriptor, 0, size)  # a full disk shows here, and not as a bus error while writing to the map


def _disk_full(folder: Path, size: int) -> FedethosError:
    return FedethosError(
        "MODEL-462",
        f"Not enough disk for the cached layers: {size / 1e6:,.0f} MB are needed, {shutil.disk_usage(folder).free / 1e6:,.0f} MB are free.",
        where=str(folder),
        fix="Free some space, write cache_dtype: float16 (half the size), or cache_frozen_prefix: off (slower).",
    )
