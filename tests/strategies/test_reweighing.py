"""Reweighing against the paper's worked example and against what it promises: group and label become independent."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedethos.strategies.reweighing import reweighing_weights


def test_the_example_of_kamiran_and_calders() -> None:
    """Ten applicants: of five women two are accepted, of five men four. The published weights: 1.5 and .67, .75 and 2."""
    people = np.array([[3.0, 2.0], [1.0, 4.0], [0.0, 0.0]])
    weights = reweighing_weights(people, max_weight=4.0)
    np.testing.assert_allclose(weights, [[2 / 3, 1.5], [2.0, 0.75], [1.0, 1.0]], rtol=1e-12)
    np.testing.assert_allclose(reweighing_weights(people / 10, max_weight=4.0), weights, rtol=1e-12)  # shares do as well


@given(arrays(np.float64, (4, 2), elements=st.floats(1.0, 1e4)))
def test_group_and_label_become_independent_and_each_weighs_what_it_did(people: np.ndarray) -> None:
    people[-1] = 0.0
    weighed = people * reweighing_weights(people, max_weight=1e9)
    for axis in (0, 1):
        np.testing.assert_allclose(weighed.sum(axis=axis), people.sum(axis=axis), rtol=1e-9)
    np.testing.assert_allclose(weighed, weighed.sum(axis=1, keepdims=True) * weighed.sum(axis=0) / weighed.sum(), rtol=1e-9)


def test_noisy_counts_never_give_wild_weights() -> None:
    people = np.array([[900.0, -4.0], [700.0, 200.0], [-7.0, 3.0]])
    weights = reweighing_weights(people, max_weight=2.0, least=11)
    assert weights[0, 1] == 1.0, "a cell that noise fills keeps its weight"
    assert (weights[-1] == 1.0).all(), "unknown is no group"
    assert (weights > 0.0).all()
    assert reweighing_weights(np.array([[1000.0, 1.0], [10.0, 1000.0], [0, 0]]), max_weight=2.0).max() == 2.0
    assert reweighing_weights(np.full((3, 2), -1.0), max_weight=2.0) == pytest.approx(np.ones((3, 2)))
