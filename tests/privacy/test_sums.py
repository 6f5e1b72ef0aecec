"""Private sums: hand-worked values, the bound on one unit, the law of the noise, and what must have been paid."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from fedethos.caps import Caps
from fedethos.errors import FedethosError
from fedethos.privacy.events import Allotment, CountRelease, GaussianSum
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.randomness import SeededSource
from fedethos.privacy.sums import clipped_sums, release_sums


def test_hand_worked_sums() -> None:
    """Unit 0: rows 0.5 and 9 (clipped to 2) in cells 0 and 1, half each. Unit 1: -3, clipped to 0. Unit 2: 1.5 in cell 1."""
    sums = clipped_sums(np.array([0.5, 9.0, -3.0, 1.5]), np.array([0, 0, 1, 2]), np.array([0, 1, 0, 1]), cells=3, bound=2.0)
    assert sums == pytest.approx([0.25, 1.0 + 1.5, 0.0])


@pytest.mark.parametrize("spoiled", [np.nan, np.inf, -np.inf])
def test_a_unit_with_a_value_that_is_not_finite_adds_nothing(spoiled: float) -> None:
    sums = clipped_sums(np.array([1.0, spoiled, 1.0]), np.array([0, 0, 1]), np.zeros(3, dtype=np.int64), cells=1, bound=2.0)
    assert sums == pytest.approx([1.0])


rows = st.lists(st.tuples(st.floats(allow_nan=True), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None)
@given(rows, st.floats(0.01, 100.0))
def test_one_unit_moves_the_sums_by_the_bound_at_most(rows: list[tuple[float, int, int]], bound: float) -> None:
    values, unit, cell = (np.array(column) for column in zip(*rows, strict=True))
    everybody = clipped_sums(values, unit, cell, cells=5, bound=bound)
    for one in np.unique(unit):
        others = unit != one
        without = clipped_sums(values[others], unit[others], cell[others], cells=5, bound=bound)
        assert np.linalg.norm(everybody - without) <= bound * (1 + 1e-9)


def test_nobody_gives_zero_and_misfits_are_refused() -> None:
    none, index = np.zeros(0), np.zeros(0, dtype=np.int64)
    assert clipped_sums(none, index, index, cells=2, bound=1.0) == pytest.approx([0.0, 0.0])
    one, zero = np.ones(1), np.zeros(1, dtype=np.int64)
    for arguments in (
        {"values": one, "unit": zero, "cell": zero + 2, "cells": 2, "bound": 1.0},
        {"values": one, "unit": zero, "cell": zero - 1, "cells": 2, "bound": 1.0},
        {"values": one, "unit": index, "cell": zero, "cells": 2, "bound": 1.0},
        {"values": one, "unit": zero, "cell": zero, "cells": 2, "bound": 0.0},
        {"values": one, "unit": zero, "cell": zero, "cells": 2, "bound": np.inf},
    ):
        with pytest.raises(FedethosError, match="PRIV-357"):
            clipped_sums(**arguments)


def test_a_release_is_paid_noisy_and_used_once(tmp_path) -> None:
    event = GaussianSum(noise_multiplier=3.0, population="train")
    counts = CountRelease(sigma=20.0, rows=1, tables=1, population="train")
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        caps = Caps(lifetime_epsilon=8.0, per_job_epsilon=8.0)
        ledger.open_account("a", caps=caps, unit="record", adjacency="add-remove", simulated=True)
        paid = (Allotment(purpose="losses", event=event, times=1), Allotment(purpose="counts", event=counts, times=1))
        plan = ledger.commit(
            SpendingPlan(
                account="a", job_sha256="a" * 64, run="r", unit="record", adjacency="add-remove", epsilon=8.0, delta=1e-5, allotments=paid
            )
        )
        values, unit = np.full(40, 5.0), np.arange(40)
        cells = 4000
        told = {"values": values, "unit": unit, "cell": unit, "cells": cells, "bound": 2.0, "source": SeededSource(1)}
        with pytest.raises(FedethosError, match="PRIV-356"):
            release_sums(**told, receipt=plan.reserve("counts", 1))
        receipt = plan.reserve("losses", 1)
        release = release_sums(**told, receipt=receipt)
        with pytest.raises(FedethosError, match="PRIV-317"):
            release_sums(**told, receipt=receipt)
    noise = release.value - np.r_[np.full(40, 2.0), np.zeros(cells - 40)]
    assert kstest(noise / (3.0 * 2.0), "norm").pvalue > 1e-3
