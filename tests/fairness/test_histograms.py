"""The site's count table, its threshold cut, and what the coordinator refuses to pool."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedethos.errors import FedethosError
from fedethos.fairness.histograms import BINS, EDGES, OVERALL, check_tables, confusion, histogram, pool, table_shapes

records = st.integers(0, 60).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float64, n, elements=st.one_of(st.sampled_from([*EDGES, np.inf, -np.inf]), st.floats(-40, 40))),
        hnp.arrays(np.int64, n, elements=st.integers(0, 1)),
        hnp.arrays(np.int64, n, elements=st.integers(0, 2)),
    )
)


@given(records, st.integers(1, BINS - 1))
def test_cut_histogram_equals_counting_scores_at_the_edge(arrays, edge):
    scores, label, group = arrays
    cut = confusion(histogram(scores, label, group, groups=3, labels=2), edge)
    for g in range(3):
        for value in range(2):
            above = scores[(group == g) & (label == value)] >= EDGES[edge]
            assert cut[g, value].tolist() == [int((~above).sum()), int(above.sum())]


@given(records)
def test_nobody_is_dropped(arrays):
    table = histogram(*arrays, groups=3, labels=2)
    assert table.shape == (3, 2, BINS)
    assert table.dtype == np.int64
    assert table.sum() == len(arrays[0])


def test_a_score_just_below_an_edge_stays_below():
    below = np.nextafter(0.0, -1.0)  # adding 16 and dividing would round it up to the edge
    table = histogram(np.array([below, 0.0]), np.array([0, 0]), np.array([0, 0]), groups=1, labels=1)
    assert confusion(table, BINS // 2).tolist() == [[[1, 1]]]


@pytest.mark.parametrize(
    ("scores", "label", "group", "code"),
    [
        ([0.0, np.nan], [0, 1], [0, 0], "NODE-520"),
        ([0.0, 1.0], [0, 2], [0, 0], "NODE-521"),
        ([0.0, 1.0], [0, 1], [0, -1], "NODE-521"),
        ([0.0, 1.0], [0, 1], [0, 3], "NODE-521"),
        ([0.0, 1.0], [0], [0, 0], "NODE-521"),
    ],
)
def test_refuses_records_without_a_cell(scores, label, group, code):
    with pytest.raises(FedethosError) as refused:
        histogram(np.array(scores), np.array(label), np.array(group), groups=3, labels=2)
    assert refused.value.code == code


@pytest.mark.parametrize("edge", [0, BINS, -1])
def test_refuses_a_threshold_in_an_open_bin(edge):
    with pytest.raises(FedethosError, match="AGG-734"):
        confusion(np.zeros((1, 2, BINS), dtype=np.int64), edge)


SHAPES = table_shapes({"sex": ["Female", "Male"], "race": ["White"]}, labels=2)


def site_tables(seed=0, people=50):
    rng = np.random.default_rng(seed)
    scores, label = rng.normal(0, 4, people), rng.integers(0, 2, people)
    return {name: histogram(scores, label, rng.integers(0, shape[0], people), groups=shape[0], labels=2) for name, shape in SHAPES.items()}


def test_shapes_count_unknown_and_fall_back_to_overall():
    assert SHAPES == {"sex": (3, 2, BINS), "race": (2, 2, BINS)}
    assert table_shapes({}, labels=2) == {OVERALL: (1, 2, BINS)}


def test_pool_adds_the_sites():
    sites = [site_tables(seed) for seed in range(3)]
    pooled = pool(sites, SHAPES)
    for name in SHAPES:
        assert (pooled[name] == sites[0][name] + sites[1][name] + sites[2][name]).all()


def test_pool_needs_a_site():
    with pytest.raises(FedethosError, match="AGG-733"):
        pool([], SHAPES)


def negative(tables):
    tables["sex"][0, 0, 0] -= 100


def huge(tables):
    tables["sex"][0, 0, 0] += 2**61


def other_people(tables):
    tables["sex"][0, 0, 0] += 1


def same_total_other_label(tables):
    occupied = np.argwhere(tables["sex"] > 0)[0]
    tables["sex"][tuple(occupied)] -= 1
    tables["sex"][occupied[0], 1 - occupied[1], occupied[2]] += 1


def missing(tables):
    del tables["race"]


def extra(tables):
    tables["age"] = tables["race"].copy()


def other_shape(tables):
    tables["race"] = tables["race"][:, :, :16]


def other_dtype(tables):
    tables["race"] = tables["race"].astype(np.float64)


@pytest.mark.parametrize(
    ("tamper", "code"),
    [
        (missing, "AGG-730"),
        (extra, "AGG-730"),
        (other_shape, "AGG-730"),
        (other_dtype, "AGG-730"),
        (negative, "AGG-731"),
        (huge, "AGG-731"),
        (other_people, "AGG-732"),
        (same_total_other_label, "AGG-732"),
    ],
)
def test_pool_refuses_tables_that_are_not_counts_of_one_set_of_people(tamper, code):
    check_tables(site_tables(), SHAPES)
    tampered = site_tables()
    tamper(tampered)
    with pytest.raises(FedethosError) as refused:
        pool([site_tables(1), tampered], SHAPES)
    assert refused.value.code == code
