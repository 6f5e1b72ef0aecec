"""A bound on records per person that looks at nobody else."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fedethos.data.bound import at_most
from fedethos.data.records import Records


def records(people: list[int], texts: list[int]) -> Records:
    _, unit = np.unique(people, return_inverse=True)
    identity = np.repeat(np.asarray(people, dtype=np.uint8)[:, None], 32, axis=1)
    return Records(
        text=tuple(f"note {text}" for text in texts),
        label=np.asarray(texts) % 2,
        groups={"sex": np.asarray(people) % 2},
        unit=unit.astype(np.int64),
        identity=identity,
        kept=None,
    )


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=25)


def by_person(kept: Records) -> dict[int, list[str]]:
    return {int(person): sorted(np.asarray(kept.text)[kept.identity[:, 0] == person]) for person in set(kept.identity[:, 0])}


@given(rows=ROWS, bound=st.integers(1, 5))
def test_everybody_keeps_the_smaller_of_the_bound_and_what_they_have(rows: list[tuple[int, int]], bound: int) -> None:
    people, texts = [person for person, _ in rows], [text for _, text in rows]
    kept = by_person(at_most(records(people, texts), bound))
    assert {person: len(own) for person, own in kept.items()} == {person: min(bound, people.count(person)) for person in set(people)}


@given(rows=ROWS, bound=st.integers(1, 3), data=st.data())
def test_the_choice_depends_on_the_persons_own_records_alone(rows: list[tuple[int, int]], bound: int, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    alone = [row for row in rows if row[0] == rows[0][0]]
    choices = [by_person(at_most(records(*map(list, zip(*some, strict=True))), bound))[rows[0][0]] for some in (rows, shuffled, alone)]
    assert choices[0] == choices[1] == choices[2]
