"""Named parameters to arrays and back: what messages, checkpoints and adapter files carry. Names are checked, numbers too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fedethos.errors import FedethosError

Arrays = Mapping[str, npt.NDArray[np.float32]]
Named = Mapping[str, nn.Parameter]


def read_arrays(parameters: Named, names: Iterable[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Copies of the parameters with these names, float32. An unknown name raises MODEL-454."""
    names = list(names)
    if not set(names) <= set(parameters):
        raise _wrong_names(len(set(names) - set(parameters)), 0)
    return {name: parameters[name].detach().cpu().to(torch.float32).numpy().copy() for name in names}


def write_arrays(parameters: Named, arrays: Arrays) -> None:
    """Overwrite parameters: exactly the trainable ones, exactly the frozen ones, or all. Nothing is written on an error.

    Raises
    ------
    FedethosError
        MODEL-454 unknown or missing name, MODEL-455 wrong shape, MODEL-456 not float32, MODEL-457 NaN or infinity.
    """
    frozen = {name for name, parameter in parameters.items() if not parameter.requires_grad}
    given = set(arrays)
    trainable = set(parameters) - frozen
    if not given or given not in (frozen, trainable, set(parameters)):
        raise _wrong_names(len(given - trainable), len(trainable - given))
    for name, array in arrays.items():
        _check_array(name, array, tuple(parameters[name].shape))
    with torch.no_grad():
        for name, array in arrays.items():
            parameters[name].copy_(torch.tensor(array))


def _check_array(name: str, array: npt.NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise FedethosError("MODEL-455", f"An adapter tensor has the shape {array.shape}, expected {shape}.", where=name)
    if array.dtype != np.float32:
        raise FedethosError("MODEL-456", f"An adapter tensor has the type {array.dtype}, expected float32.", where=name)
    if not np.isfinite(array).all():
        raise FedethosError("MODEL-457", "An adapter tensor holds NaN or infinity.", where=name, why="It would spoil the whole model.")


def _wrong_names(unknown: int, missing: int) -> FedethosError:
    return FedethosError(
        "MODEL-454",
        f"Adapter tensors do not fit the model: {unknown} unknown names, {missing} missing.",
        why="The adapter belongs to another base model, rank or choice of layers.",
        fix="Use the job that the adapter was made with.",
    )
