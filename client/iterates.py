"""The average of a round's iterates, which a site may send in place of the last one (``training.iterate_average``).

Polyak & Juditsky 1992 ("Acceleration of Stochastic Approximation by Averaging"): the noise of single steps cancels in the mean of
the iterates; De et al. 2022 ("Unlocking High-Accuracy Differentially Private Image Classification through Scale") use a moving average
under DP-SGD. Every iterate x_t has its privacy noise in it already, so the mean is post-processing and costs no epsilon. Both means
are one recursion, m ← m + w_t (x_t - m), and differ in the weights w_t only:

- ``tail``: the uniform mean of the round's last half, w_t = 1 / (t - start + 1) from t = start on, 1 before it;
- ``ema``: the exponential moving average with decay 0.9 and bias correction (Kingma & Ba 2015, section 3), w_t = (1 - d) / (1 - d^(t+1)).
"""

from __future__ import annotations

from typing import Literal

import torch

from fedethos.privacy.engine import Parameters

Kind = Literal["none", "tail", "ema"]

DECAY = 0.9


def _weight(kind: Kind, step: int, steps: int) -> float:
    """w_t of the iterate after step t = ``step`` of 0 … ``steps`` - 1."""
    if kind == "ema":
        return (1.0 - DECAY) / (1.0 - DECAY ** (step + 1))
    return 1.0 / max(1, step - steps // 2 + 1)


class IterateAverage:
    """Running mean in float64 over the iterates of ``parameters``, one ``add`` after each of ``steps`` steps; nothing for ``none``."""

    def __init__(self, parameters: Parameters, kind: Kind, steps: int) -> None:
        self._kind, self._steps, self._added = kind, steps, 0
        self._averaged = {} if kind == "none" else dict(parameters)
        self._mean = {name: torch.zeros_like(parameter, dtype=torch.float64) for name, parameter in self._averaged.items()}

    def add(self) -> None:
        """Take in the current values."""
        weight = _weight(self._kind, self._added, self._steps)
        for name, parameter in self._averaged.items():
            self._mean[name] += weight * (parameter.detach() - self._mean[name])
        self._added += 1

    def write(self) -> None:
        """Overwrite the parameters with their mean."""
        with torch.no_grad():
            for name, parameter in self._averaged.items():
                parameter.copy_(self._mean[name])
