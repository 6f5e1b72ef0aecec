import os

import numpy as np
import pytest
from scipy import stats

from fedethos.privacy.randomness import SecureSource, SeededSource, keyed_generator

SOURCES = [SecureSource(), SeededSource(7, "site-1", 3, 11)]


@pytest.mark.parametrize("source", SOURCES, ids=["secure", "seeded"])
def test_normal_numbers_are_normal(source: SecureSource | SeededSource) -> None:
    numbers = source.normal(200_001)
    assert numbers.shape == (200_001,)
    assert stats.kstest(numbers, "norm").pvalue > 1e-4
    assert np.abs(numbers).max() > 3.9  # tails are there
    assert abs(np.corrcoef(numbers[:100_000], numbers[100_000:200_000])[0, 1]) < 0.02


@pytest.mark.parametrize("source", SOURCES, ids=["secure", "seeded"])
def test_uniform_numbers_are_uniform_and_below_one(source: SecureSource | SeededSource) -> None:
    numbers = source.uniform(200_000)
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4
    assert numbers.min() >= 0.0 and numbers.max() < 1.0


def test_a_key_names_one_stream_whatever_was_drawn_before() -> None:
    SeededSource(7, "site-1", 3, 11).normal(10)
    assert np.array_equal(SeededSource(7, "a", 1).normal(5), SeededSource(7, "a", 1).normal(5))


@pytest.mark.parametrize("other", [(8, "a", 1), (7, "b", 1), (7, "a", 2), (7, "a", "1"), (7, "a1")])
def test_any_part_of_the_key_changes_the_stream(other: tuple[int, ...]) -> None:
    assert not np.array_equal(keyed_generator(7, "a", 1).random(4), keyed_generator(*other).random(4))


def test_secure_streams_differ_between_calls_and_after_a_fork() -> None:
    source = SecureSource()
    assert not np.array_equal(source.uniform(4), source.uniform(4))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source.uniform(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 32) != source.uniform(4).tobytes()
