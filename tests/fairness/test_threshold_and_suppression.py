"""The pooled threshold and the groups that may not be shown."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedethos.errors import FedethosError
from fedethos.fairness.counts import Count
from fedethos.fairness.histograms import BINS, EDGES, confusion, histogram
from fedethos.fairness.suppression import withheld, withheld_combinations
from fedethos.fairness.threshold import FIXED_EDGE, base_rate_edge


def test_fixed_edge_is_a_score_of_one_half():
    assert EDGES[FIXED_EDGE] == 0.0


@given(hnp.arrays(np.int64, (2, 2, BINS), elements=st.integers(0, 9)), st.integers(0, 1))
def test_base_rate_edge_is_the_best_of_all_edges(table, favorable):
    table[0, 0, 0] += 1
    edge = base_rate_edge(table, favorable)

    def distance(at):
        return abs(int(confusion(table, at)[:, :, 1].sum()) - int(table[:, favorable].sum()))

    assert (distance(edge), abs(edge - FIXED_EDGE)) == min((distance(at), abs(at - FIXED_EDGE)) for at in range(1, BINS))


def test_base_rate_edge_finds_the_cut_of_an_overconfident_model():
    rng = np.random.default_rng(1)
    label = (rng.random(4000) < 0.24).astype(np.int64)
    scores = rng.normal(label * 3.0 + 5.0, 2.0)  # 0.5 would select nearly everybody
    edge = base_rate_edge(histogram(scores, label, np.zeros(4000, dtype=np.int64), groups=1, labels=2), favorable=1)
    assert EDGES[edge] == pytest.approx(np.quantile(scores, 1 - label.mean()), abs=0.25)


def test_base_rate_edge_needs_people():
    with pytest.raises(FedethosError, match="AGG-735"):
        base_rate_edge(np.zeros((2, 2, BINS), dtype=np.int64), 1)


def sizes(people, variance=0.0):
    return Count(np.array(people, dtype=np.float64), np.full(len(people), variance))


@pytest.mark.parametrize(
    ("people", "hidden"),
    [
        ([100, 200, 300], ()),
        ([100, 200, 0], ()),  # an empty group hides nobody
        ([100, 200, 11], ()),
        ([300, 200, 10], (1, 2)),  # alone it would be the total minus the others
        ([300, 0, 10], (0, 2)),
        ([4, 200, 10], (0, 2)),
        ([4], (0,)),
        ([-3, 200, 300], ()),  # noise below one is nobody
    ],
)
def test_small_groups_are_withheld_with_a_complement(people, hidden):
    assert withheld(sizes(people), 11) == hidden


@pytest.mark.parametrize(
    ("people", "hidden"),
    [
        ([100, 200, 6], (2,)),  # an empty group looks like this; a complement would hide somebody for nothing
        ([100, 200, -6], (2,)),
        ([100, 200, 30], ()),
        ([100, 20, 6], (2,)),
        ([100, 200, 16], (2,)),  # 3.2 standard deviations
        ([100, 200, 17], ()),
    ],
)
def test_a_noisy_group_that_may_be_empty_is_withheld_without_a_complement(people, hidden):
    assert withheld(sizes(people, variance=25.0), 11) == hidden


def test_a_small_group_that_is_surely_there_calls_for_a_complement_in_spite_of_little_noise():
    assert withheld(sizes([100, 200, 10], variance=9.0), 11) == (0, 2)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6))
def test_no_small_group_is_shown_or_recoverable(people):
    hidden = withheld(sizes(people), 11)
    assert all(size == 0 or size >= 11 for group, size in enumerate(people) if group not in hidden)
    assert len(hidden) != 1 or sum(size > 0 for size in people) == 1


def crossed(table, hidden=(), parts=((2, ()), (3, ()))):
    return withheld_combinations(sizes([*np.ravel(table), 0]), hidden, parts)


def test_a_lone_withheld_combination_takes_another_of_each_of_its_sums_with_it():
    assert crossed([[90, 80, 70], [60, 50, 40]]) == ()
    # the one of 5 would be its row less two, and its column less one; so would be each complement of it
    assert crossed([[90, 80, 5], [60, 50, 40]], hidden=(2,)) == (1, 2, 4, 5)


def test_a_withheld_part_may_not_be_the_sum_of_its_combinations():
    assert crossed([[90, 80, 70], [60, 50, 40]], parts=((2, ()), (3, (1, 2)))) == (4, 5)


def determined(equations, unknown):
    """Whether the equations fix this unknown: whether its unit vector lies in their row space."""
    with_it = np.vstack([equations, np.eye(equations.shape[1])[unknown]])
    return np.linalg.matrix_rank(with_it) == np.linalg.matrix_rank(equations)


@given(st.lists(st.integers(0, 40), min_size=6, max_size=6))
def test_no_small_combination_follows_from_the_sums_that_are_shown(people):
    """By linear algebra over everything that is withheld, in both parts and their intersection."""
    table = np.array(people).reshape(2, 3)
    margins = [table.sum(axis=1), table.sum(axis=0)]
    own = [withheld(sizes(margin), 11) for margin in margins]
    hidden = withheld_combinations(sizes([*people, 0]), withheld(sizes([*people, 0]), 11), list(zip((2, 3), own, strict=True)))
    names = [("cell", cell) for cell in hidden] + [(part, group) for part in (0, 1) for group in own[part]]
    sums = [[("cell", cell) for cell in range(6)]]
    sums += [[(part, group) for group in range(len(margins[part]))] for part in (0, 1)]
    for part, axis in ((0, 0), (1, 1)):
        for group in range(len(margins[part])):
            sums.append([(part, group), *(("cell", int(cell)) for cell in np.take(np.arange(6).reshape(2, 3), group, axis=axis))])
    equations = np.array([[float(name in one) * (-1 if name[0] != "cell" else 1) for name in names] for one in sums])
    for place, (kind, group) in enumerate(names):
        if kind == "cell" and 0 < people[group] < 11 and (table > 0).sum() > 1:
            assert not determined(equations, place)
