"""Algebra of low-rank products B A that never forms the dense matrix: sums, singular values, best lower rank, norm. float64.

For B [d, k] and A [k, e]: with thin QR B = Q R and Aᵀ = P T, the SVD of the small R Tᵀ = u S vᵀ gives B A = (Q u) S (P v)ᵀ.
Next: ``strategies/`` combines sites' adapters with it, ``fedethos.models.residual`` folds and exports what they leave.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

_NUMERICALLY_ZERO = 1e-7  # of the largest singular value; factors travel as float32, which is as coarse


@dataclass(frozen=True)
class Product:
    """The matrix b @ a, float64[d, e], kept as its factors."""

    b: Matrix  # [d, k]
    a: Matrix  # [k, e]

    @classmethod
    def of(cls, b: npt.NDArray[np.floating], a: npt.NDArray[np.floating]) -> Product:
        return cls(b.astype(np.float64), a.astype(np.float64))

    @property
    def rank(self) -> int:
        """Columns of b, an upper bound of the true rank."""
        return int(self.b.shape[1])

    def dense(self) -> Matrix:
        return self.b @ self.a

    def times(self, factor: float) -> Product:
        return Product(factor * self.b, self.a)


def added(products: Iterable[Product]) -> Product:
    """The exact sum, by stacking: [b1 b2 …] [a1; a2; …]. Its rank is the sum of the ranks."""
    parts = list(products)
    return Product(np.hstack([part.b for part in parts]), np.vstack([part.a for part in parts]))


class RunningSum:
    """The sum of many products, added one by one, in memory that does not grow with their number.

    Products that share a factor are added in the other one. Else factors are stacked, and cut back to the matrix's smaller side, which
    loses nothing, whenever there are twice as many columns.
    """

    def __init__(self) -> None:
        self._sum: Product | None = None

    def add(self, product: Product) -> None:
        so_far = self._sum
        if so_far is None:
            self._sum = product
        elif np.array_equal(so_far.a, product.a):
            self._sum = Product(so_far.b + product.b, product.a)
        elif np.array_equal(so_far.b, product.b):
            self._sum = Product(product.b, so_far.a + product.a)
        else:
            stacked = added([so_far, product])
            most = 2 * min(stacked.b.shape[0], stacked.a.shape[1])
            self._sum = with_orthonormal_a(stacked, most // 2) if stacked.rank > most else stacked

    @property
    def value(self) -> Product:
        """The sum so far. At least one product has been added."""
        if self._sum is None:
            raise ValueError("nothing was added")
        return self._sum


def singular(product: Product) -> tuple[Matrix, Matrix, Matrix]:
    """Thin SVD (U [d, m], S [m] falling, Vᵀ [m, e]) of the product, m = min(k, d, e)."""
    q, r = np.linalg.qr(product.b)
    p, t = np.linalg.qr(product.a.T)
    u, s, vt = np.linalg.svd(r @ t.T, full_matrices=False)
    return q @ u, s, vt @ p.T


def with_orthonormal_a(product: Product, rank: int) -> Product:
    """The best approximation of rank at most ``rank`` (Eckart and Young) as b = U S [d, rank], a = Vᵀ [rank, e]; exact where it suffices.

    Where the matrix has fewer than ``rank`` rows or columns the rest is zero.
    """
    u, s, vt = singular(product)
    missing = max(0, rank - len(s))
    return Product(np.pad(u[:, :rank] * s[:rank], ((0, 0), (0, missing))), np.pad(vt[:rank], ((0, missing), (0, 0))))


def compressed(product: Product) -> Product:
    """The same matrix with as few columns as it needs (at least one), U √S and √S Vᵀ."""
    u, s, vt = singular(product)
    needed = max(1, int((s > _NUMERICALLY_ZERO * s[0]).sum()))
    root = np.sqrt(s[:needed])
    return Product(u[:, :needed] * root, root[:, None] * vt[:needed])


def frobenius(product: Product) -> float:
    """Frobenius norm of b @ a, as exact as the dense matrix would give it."""
    _, r = np.linalg.qr(product.b)
    _, t = np.linalg.qr(product.a.T)
    return float(np.linalg.norm(r @ t.T))
