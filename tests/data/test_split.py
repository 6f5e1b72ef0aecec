"""The split: by person, for ever the same, and what it promises about order, growth, limit and salt."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.data.records import Records
from fedethos.data.split import SplitName, split_records
from fedethos.errors import FedethosError
from fedethos.job_data import Split

SPLIT = Split(train=0.6, validation=0.1, test=0.3)


def people(names: list[int]) -> Records:
    """One record per entry; equal numbers are one person."""
    digests = [hashlib.sha256(str(name).encode()).digest() for name in names]
    return Records(
        text=tuple(map(str, names)),
        label=np.zeros(len(names), dtype=np.int64),
        groups={},
        unit=np.unique(names, return_inverse=True)[1],
        identity=np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 32),
    )


def names(parts: dict[SplitName, Records]) -> dict[SplitName, set[str]]:
    return {name: set(part.text) for name, part in parts.items()}


def test_the_hash_is_hmac_sha256_of_the_person() -> None:
    """The promise "for ever" needs the formula itself pinned, not only its properties."""
    records = people(list(range(300)))
    expected = set()
    for name, identity in zip(records.text, records.identity, strict=True):
        digest = hmac.new(b"salt", b"fedethos/split/v1:" + identity.tobytes(), "sha256").digest()
        if int.from_bytes(digest[:8], "big") / 2**64 < 0.6:
            expected.add(name)
    assert names(split_records(records, SPLIT, salt="salt", limit=None))["train"] == expected


@settings(max_examples=25, deadline=None)
@given(again=st.lists(st.integers(0, 199), max_size=60), limit=st.none() | st.floats(0.5, 1.0), seed=st.integers(0, 99))
def test_nobody_is_in_two_splits_and_order_does_not_matter(again: list[int], limit: float | None, seed: int) -> None:
    who = [*range(200), *again]
    parts = names(split_records(people(who), SPLIT, salt="s", limit=limit))
    assert not parts["train"] & parts["validation"] | parts["train"] & parts["test"] | parts["validation"] & parts["test"]
    shuffled = [who[i] for i in np.random.default_rng(seed).permutation(len(who))]
    assert names(split_records(people(shuffled), SPLIT, salt="s", limit=limit)) == parts


def test_without_a_limit_every_record_is_in_a_split() -> None:
    parts = split_records(people([*range(500), *range(100)]), SPLIT, salt="s", limit=None)
    assert sum(map(len, parts.values())) == 600


def test_new_rows_move_nobody() -> None:
    before = names(split_records(people(list(range(500))), SPLIT, salt="s", limit=0.7))
    after = names(split_records(people(list(range(900))), SPLIT, salt="s", limit=0.7))
    assert all(before[name] <= after[name] for name in before)


def test_a_larger_limit_only_adds_people() -> None:
    records = people(list(range(2_000)))
    small, large = (names(split_records(records, SPLIT, salt="s", limit=limit)) for limit in (0.2, 0.5))
    assert all(small[name] < large[name] for name in small)


def test_shares_and_independence_of_the_two_hashes() -> None:
    """20,000 people: every share within four standard errors, also among those that the limit leaves."""
    records = people(list(range(20_000)))
    for limit, n in ((None, 20_000), (0.3, 6_000)):
        parts = split_records(records, SPLIT, salt="s", limit=limit)
        for name, share in (("train", 0.6), ("validation", 0.1), ("test", 0.3)):
            expected = share * n
            assert abs(len(parts[name]) - expected) < 4 * np.sqrt(expected)


def test_another_salt_is_another_split() -> None:
    records = people(list(range(20_000)))
    a, b = (names(split_records(records, SPLIT, salt=salt, limit=None))["train"] for salt in ("a", "b"))
    assert abs(len(a & b) - 0.36 * 20_000) < 4 * np.sqrt(0.36 * 20_000)


def test_an_empty_split_is_an_error() -> None:
    with pytest.raises(FedethosError) as error:
        split_records(people([1, 1, 1]), SPLIT, salt="s", limit=None)
    assert error.value.code == "DATA-131"
