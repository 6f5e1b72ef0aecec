"""Pure functions over adapter arrays: weighted mean, weight cap, layer products, aggregation error. No Flower, no I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fedethos.aggregation import core_name, layers_of, lora_names, residual_names
from fedethos.messages import Arrays
from fedethos.models.lowrank import Product, RunningSum, added, compressed, frobenius

Updates = Collection[Arrays]
"""Updates of sites, each read from disk when its turn comes: to be gone through, several times if need be, and not to be kept."""


def weighted_mean(updates: Updates, weights: Sequence[float]) -> Arrays:
    """Coordinate-wise weighted mean (McMahan et al. 2017, FedAvg), summed in float64, returned as float32.

    Memory is that of three updates, however many there are.

    Parameters
    ----------
    updates : collection of dict name -> float32 array
        All with the same names and shapes.
    weights : sequence of float
        Positive; normalised here.
    """
    total: dict[str, npt.NDArray[np.float64]] = {}
    for share, update in zip(_normalised(weights), updates, strict=True):
        for name, array in update.items():
            term = array.astype(np.float64)
            term *= share
            if name in total:
                total[name] += term
            else:
                total[name] = term
    return {name: array.astype(np.float32) for name, array in total.items()}


def _normalised(weights: Sequence[float]) -> npt.NDArray[np.float64]:
    given = np.asarray(weights, dtype=np.float64)
    return np.asarray(given / given.sum())


def capped_shares(weights: Mapping[str, float], cap: float) -> dict[str, float]:
    """Shares of the total in which nobody exceeds ``cap``; the excess goes to the others in proportion.

    With too few sites for the cap (n * cap < 1) all shares are equal.
    """
    if len(weights) * cap <= 1.0:
        return dict.fromkeys(weights, 1.0 / len(weights))
    capped: set[str] = set()
    while True:
        free = 1.0 - cap * len(capped)
        total = sum(weight for name, weight in weights.items() if name not in capped)
        shares = {name: cap if name in capped else free * weight / total for name, weight in weights.items()}
        over = {name for name, share in shares.items() if share > cap + 1e-12}
        if not over:
            return shares
        capped |= over


def aggregation_error(before: Arrays, updates: Updates, weights: Sequence[float], after: Arrays, frozen: Arrays) -> float:
    """How far the model after aggregation is from the mean of the sites' models, relative in Frobenius norm over all adapted layers:

        ‖ΔW(after) - Σ pᵢ ΔW(siteᵢ)‖ / ‖Σ pᵢ ΔW(siteᵢ)‖,    ΔW = B A + residual_B residual_A.

    Averaging A and B apart is not averaging BA (Sun et al. 2024, FFA-LoRA), so fedavg has an error; exact rules have that of float32.
    What a server optimizer changes on purpose counts as well.

    Parameters
    ----------
    before, after : dict name -> array
        The global tensors that the round began with, and ended with.
    updates : sequence of dict name -> array
        What each site trained, after the robust step; the rest of its model is ``before`` and ``frozen``.
    frozen : dict name -> array
        Tensors that travel once.

    Returns
    -------
    float
        0 when there is no adapted layer or the mean is zero.
    """
    difference = norm = 0.0
    rest = {**frozen, **before}
    trained = mean_products(updates, weights, layers_of({*after, *frozen}), rest)
    for layer, product in trained.items():
        mean = added([product, *residual_of(rest, layer)])
        difference += frobenius(added([update_of({**frozen, **after}, layer), mean.times(-1.0)])) ** 2
        norm += frobenius(mean) ** 2
    return float(np.sqrt(difference / norm)) if norm > 0 else 0.0


def update_of(arrays: Arrays, layer: str) -> Product:
    """A layer's whole update in units of lora_alpha / r: B A, and the residual where there is one."""
    return added([adapter_of(arrays, layer), *residual_of(arrays, layer)])


def adapter_of(arrays: Arrays, layer: str) -> Product:
    """B A of a layer; B R A where there is a core R."""
    name_b, name_a = lora_names(layer)
    product = Product.of(arrays[name_b], arrays[name_a])
    core = arrays.get(core_name(layer))
    return product if core is None else Product(product.b @ core.astype(np.float64), product.a)


def residual_of(arrays: Arrays, layer: str) -> list[Product]:
    """The residual of a layer; empty where there is none yet."""
    name_b, name_a = residual_names(layer)
    return [Product.of(arrays[name_b], arrays[name_a])] if name_b in arrays else []


def mean_products(updates: Updates, weights: Sequence[float], layers: Iterable[str], rest: Arrays) -> dict[str, Product]:
    """Σ pᵢ Bᵢ Aᵢ by layer, in one pass over the updates. ``rest``: the tensors that a site did not train."""
    sums = {layer: RunningSum() for layer in layers}
    for share, update in zip(_normalised(weights), updates, strict=True):
        whole = {**rest, **update}
        for layer, total in sums.items():
            total.add(adapter_of(whole, layer).times(share))
    return {layer: total.value for layer, total in sums.items()}


def as_lora(product: Product, layer: str) -> Arrays:
    """A product as the layer's lora_B and lora_A, float32."""
    return dict(zip(lora_names(layer), (product.b.astype(np.float32), product.a.astype(np.float32)), strict=True))


def as_residual(product: Product, layer: str) -> Arrays:
    """A product as the layer's residual, float32, with no more columns than it needs."""
    small = compressed(product)
    return dict(zip(residual_names(layer), (small.b.astype(np.float32), small.a.astype(np.float32)), strict=True))
