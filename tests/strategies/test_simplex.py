"""Projection onto the simplex, against a quadratic program that scipy solves."""

import numpy as np
import pytest
from scipy.optimize import minimize

from fedethos.strategies.simplex import projected


@pytest.mark.parametrize("total", [1.0, 0.3])
def test_it_is_the_nearest_point(total: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(5):
        point = rng.normal(size=4)
        solved = minimize(
            lambda x, point=point: np.square(x - point).sum(),
            np.full(4, total / 4),
            bounds=[(0.0, None)] * 4,
            constraints={"type": "eq", "fun": lambda x: x.sum() - total},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(projected(point, total), solved.x, atol=1e-6)


def test_a_point_of_the_simplex_stays() -> None:
    np.testing.assert_allclose(projected(np.array([0.2, 0.0, 0.8])), [0.2, 0.0, 0.8])
    np.testing.assert_allclose(projected(np.array([5.0, -1.0])), [1.0, 0.0])
