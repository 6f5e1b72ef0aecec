"""Partitions: every record at one site, people stay whole, skew follows Dirichlet's closed form, refusals name a remedy."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.job_simulation import Partition
from fedethos.simulations.partition import check_site_labels, partition

LABELS = ["no", "yes"]
CATEGORIES = {"sex": ["Female", "Male"]}


def records(n: int = 2_000, *, people: int | None = None, seed: int = 0, hospitals: Sequence[str] = ()) -> Records:
    rng = np.random.default_rng(seed)
    person = np.arange(n) if people is None else rng.integers(people, size=n)
    digests = b"".join(hashlib.sha256(str(p).encode()).digest() for p in person)
    return Records(
        text=tuple(str(i) for i in range(n)),
        label=rng.integers(2, size=n),
        groups={"sex": rng.choice(3, size=n, p=[0.5, 0.4, 0.1])},
        unit=np.unique(person, return_inverse=True)[1],
        identity=np.frombuffer(digests, dtype=np.uint8).reshape(-1, 32),
        kept=tuple(hospitals[p % len(hospitals)] for p in person) if hospitals else None,
    )


def cut(table: Records, *, sites: int = 4, seed: int = 1, **plan: object) -> list[np.ndarray]:
    return partition(table, Partition.model_validate(plan), sites=sites, seed=seed, label_values=LABELS, categories=CATEGORIES)


def code_of(**arguments: object) -> str:
    table = arguments.pop("table", records())
    with pytest.raises(FedethosError) as error:
        cut(table, **arguments)  # type: ignore[arg-type]
    return error.value.code


PLANS = [
    {"kind": "iid"},
    {"kind": "dirichlet", "by": "sex", "alpha": 1.0},
    {"kind": "dirichlet", "by": "label", "alpha": 5.0},
    {"kind": "by-group", "by": "sex"},
    {"kind": "by-column", "by": "hospital"},
]


@settings(max_examples=15, deadline=None)
@given(plan=st.sampled_from(PLANS), people=st.none() | st.integers(300, 600), seed=st.integers(0, 99))
def test_every_record_is_at_one_site_and_people_stay_whole(plan: dict[str, object], people: int | None, seed: int) -> None:
    table = records(people=people, hospitals="ABCD")
    try:
        parts = cut(table, seed=seed, **plan)
    except FedethosError as error:  # some draws leave a site without a label
        assert error.code == "DATA-135"
        return
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(table)))
    at = [{row.tobytes() for row in table.identity[part]} for part in parts]
    assert sum(map(len, at)) == len(set().union(*at))
    assert all(set(table.label[part]) == {0, 1} for part in parts)


@pytest.mark.parametrize("plan", PLANS)
def test_the_seed_decides_and_the_order_of_records_does_not(plan: dict[str, object]) -> None:
    table = records(people=500, hospitals="ABCD")
    order = np.random.default_rng(5).permutation(len(table))
    parts, again, shuffled = cut(table, **plan), cut(table, **plan), cut(table.take(order), **plan)
    for a, b, c in zip(parts, again, shuffled, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, np.sort(order[c]))
    if plan["kind"] != "by-column":
        assert any(len(a) != len(b) or (a != b).any() for a, b in zip(parts, cut(table, seed=2, **plan), strict=True))


def test_iid_deals_people_out_in_equal_numbers() -> None:
    assert sorted(map(len, cut(records(1_002), kind="iid"))) == [250, 250, 251, 251]


@pytest.mark.parametrize("alpha", [2.0, 20.0])
def test_dirichlet_shares_have_the_distributions_mean_and_variance(alpha: float) -> None:
    """A site's share of a category is Beta(alpha, (S - 1) alpha): mean 1/S, variance (S - 1) / (S² (S alpha + 1)); categories apart."""
    table, sites, draws = records(3_000), 4, 150
    shares = np.empty((2, draws, sites))
    for seed in range(draws):
        parts = cut(table, sites=sites, seed=seed, kind="dirichlet", by="sex", alpha=alpha)
        for sex in (0, 1):
            held = table.groups["sex"] == sex
            shares[sex, seed] = [held[part].sum() / held.sum() for part in parts]
    variance = (sites - 1) / (sites**2 * (sites * alpha + 1))
    np.testing.assert_allclose(shares.mean(axis=1), 1 / sites, atol=4 * np.sqrt(variance / draws))
    np.testing.assert_allclose(shares.var(axis=(1, 2)), variance, rtol=0.25)
    assert abs(np.corrcoef(shares[0].ravel(), shares[1].ravel())[0, 1]) < 4 / np.sqrt(draws * (sites - 1))


def test_dirichlet_draws_the_people_too() -> None:
    """At a huge alpha two sites halve each category; two seeds then share a quarter of the people at site 1, not half."""
    table = records(2_000)
    first, second = (cut(table, sites=2, seed=seed, kind="dirichlet", by="sex", alpha=1e6)[0] for seed in (1, 2))
    assert abs(len(np.intersect1d(first, second)) - 500) < 4 * np.sqrt(2_000 / 16)


def test_a_person_counts_for_the_category_of_most_records() -> None:
    table = records(6, people=None)
    identity = np.repeat(table.identity[:2], 3, axis=0)
    mixed = Records(table.text, np.array([0, 0, 1, 1, 1, 0]), {"sex": np.array([0, 0, 1, 1, 1, 0])}, np.repeat([0, 1], 3), identity)
    parts = cut(mixed, sites=2, kind="by-group", by="sex")
    assert [part.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5]]


def test_by_column_gives_natural_sites_in_sorted_order() -> None:
    table = records(hospitals=["Oslo", "Bonn", "Turin"])
    parts = cut(table, sites=3, kind="by-column", by="hospital")
    assert [{table.kept[i] for i in part} for part in parts] == [{"Bonn"}, {"Oslo"}, {"Turin"}]  # type: ignore[index]


def test_by_group_gives_each_site_one_group_and_uses_all_sites() -> None:
    table = records()
    sites = [set(table.groups["sex"][part].tolist()) for part in cut(table, sites=5, kind="by-group", by="sex")]
    assert sites == [{0}, {1}, {2}, {0}, {1}]
    sites = [set(table.groups["sex"][part].tolist()) for part in cut(table, sites=2, kind="by-group", by="sex")]
    assert sites == [{0, 2}, {1}]


def test_natural_sites_that_do_not_fit_are_refused() -> None:
    three = records(hospitals=["Oslo", "Bonn", "Turin"])
    assert code_of(table=three, sites=4, kind="by-column", by="hospital") == "DATA-133"
    gaps = records(hospitals=["Oslo", "Bonn"])
    holes = Records(gaps.text, gaps.label, gaps.groups, gaps.unit, gaps.identity, (None, *gaps.kept[1:]))  # type: ignore[index]
    assert code_of(table=holes, sites=2, kind="by-column", by="hospital") == "DATA-132"
    people = records(people=100, hospitals=["Oslo", "Bonn"])
    elsewhere = tuple("Oslo" if i % 2 else "Bonn" for i in range(len(people)))
    moved = Records(people.text, people.label, people.groups, people.unit, people.identity, elsewhere)
    assert code_of(table=moved, sites=2, kind="by-column", by="hospital") == "DATA-134"


@pytest.mark.parametrize(
    ("plan", "remedy"),
    [
        ({"kind": "dirichlet", "by": "label", "alpha": 0.001}, "alpha"),
        ({"kind": "by-group", "by": "label"}, "dirichlet"),
        ({"kind": "iid", "sites": 1_500}, "fewer sites"),
    ],
)
def test_a_site_without_a_label_is_refused_with_a_remedy(plan: dict[str, object], remedy: str) -> None:
    with pytest.raises(FedethosError, match=remedy) as error:
        cut(records(), **plan)  # type: ignore[arg-type]
    assert error.value.code == "DATA-135"


def test_training_records_must_hold_every_label() -> None:
    table = records(50)
    check_site_labels(table, "site-1", LABELS)
    with pytest.raises(FedethosError, match=r"site-1 hold no record of the label yes") as error:
        check_site_labels(table.take(np.flatnonzero(table.label == 0)), "site-1", LABELS)
    assert error.value.code == "DATA-136"


def test_another_draw_of_the_same_seed_deals_anew_and_the_first_is_the_seed_itself() -> None:
    table = records()
    plan = Partition.model_validate({"kind": "dirichlet", "by": "sex", "alpha": 1.0})

    def deal(draw: int) -> list[np.ndarray]:
        return partition(table, plan, sites=4, seed=1, label_values=LABELS, categories=CATEGORIES, draw=draw)

    first = cut(table, kind="dirichlet", by="sex", alpha=1.0)
    assert all((one == other).all() for one, other in zip(first, deal(0), strict=True))
    assert any(len(one) != len(other) for one, other in zip(first, deal(1), strict=True))


def test_a_partition_by_column_is_not_redrawn() -> None:
    with pytest.raises(ValidationError, match="not drawn at random"):
        Partition.model_validate({"kind": "by-column", "by": "hospital", "redraw": True})
