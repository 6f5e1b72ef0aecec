"""Where every random number of a node comes from: a seed (simulation) or the operating system (deployment).

Both sources give float64 uniforms and standard normals, and bytes for exact integer sampling. ``SeededSource`` is keyed
by what it is for, such as (seed, site, round, step), so that numbers do not depend on the order of execution.
``SecureSource`` draws a fresh AES-256 key from the operating system for each call and expands it in counter mode (NIST SP
800-90A's CTR construction without reseeding): nothing to fork, nothing to save, nothing to leak.
"""

from __future__ import annotations

import hashlib
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Floats = npt.NDArray[np.float64]

_BLOCK = 1 << 15  # even: normals come in pairs


class RandomSource(Protocol):
    """Uniform and Gaussian float64 numbers, and uniform bytes."""

    def uniform(self, count: int) -> Floats:
        """``count`` numbers, uniform on [0, 1)."""

    def normal(self, count: int) -> Floats:
        """``count`` independent standard normal numbers."""

    def random_bytes(self, count: int) -> bytes:
        """``count`` independent uniform bytes."""


def keyed_generator(seed: int, *key: str | int) -> np.random.Generator:
    """A NumPy generator that depends on ``seed`` and ``key`` alone (SHA-256 of both seeds a Philox)."""
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    digest = hashlib.sha256(text.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


class SeededSource:
    """Repeatable numbers for a simulation. Whoever knows the seed knows the noise: no privacy guarantee."""

    def __init__(self, seed: int, *key: str | int) -> None:
        self._generator = keyed_generator(seed, *key)

    def uniform(self, count: int) -> Floats:
        return self._generator.random(count)

    def normal(self, count: int) -> Floats:
        return self._generator.standard_normal(count)

    def random_bytes(self, count: int) -> bytes:
        return self._generator.bytes(count)


class SecureSource:
    """Cryptographic numbers. Guarantees are computational; floating-point Gaussians are a stated gap (docs/privacy.md)."""

    def random_bytes(self, count: int) -> bytes:
        return self._words(-(-count // 8)).tobytes()[:count]

    def uniform(self, count: int) -> Floats:
        return _to_unit_interval(self._words(count))

    def normal(self, count: int) -> Floats:
        """Box and Muller (1958): two uniforms make two normals; 1 - u keeps the logarithm finite.

        By torch, whose logarithm and cosine are vectorised on every processor, and in blocks that stay in its cache.
        """
        import torch

        words = self._words(count + count % 2)
        normal = np.empty(len(words))
        for start in range(0, len(words), _BLOCK):
            uniform = torch.from_numpy(_to_unit_interval(words[start : start + _BLOCK]))
            pairs = len(uniform) // 2
            radius = uniform[:pairs].neg_().log1p_().mul_(-2.0).sqrt_()
            angle = uniform[pairs:].mul_(2.0 * np.pi)
            made = torch.from_numpy(normal[start : start + _BLOCK])
            torch.mul(radius, angle.cos(), out=made[:pairs])
            torch.mul(radius, angle.sin_(), out=made[pairs:])
        return normal[:count]

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        """The key stream itself, written where it is needed: several times quicker than ``update``, which copies."""
        stream = bytearray(8 * count)
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
        cipher.update_into(stream, stream)
        return np.frombuffer(stream, dtype=np.uint64)


def _to_unit_interval(words: npt.NDArray[np.uint64]) -> Floats:
    """53 of the 64 bits of each word, on [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
