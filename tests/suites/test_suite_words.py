"""What people read about scores: how many digits, and how sure a limit is."""

import pytest

from fedethos.result import Interval
from fedethos.suite_record import GroupScores, MeasureScores, ScenarioLimit, SuiteScores
from fedethos.suite_words import notes, rows


def scores(measure: str, interval: Interval, limit: float | None = None, *, holds: bool | None = None) -> SuiteScores:
    one = MeasureScores(adapter=interval, base=interval, change=Interval(value=0.0, low=-1.0, high=1.0, abstained=False))
    return SuiteScores(
        basis="own-file",
        items=20,
        seed=0,
        questions_sha256="0" * 64,
        chat_template=True,
        groups={"all": GroupScores(units=20, measures={measure: one})},
        limit=None if limit is None else ScenarioLimit(measure=measure, at_most=limit, holds=holds),
        false_positives={},
    )


def test_per_cent_have_one_digit_and_shares_three() -> None:
    half = Interval(value=58.5, low=52.04, high=65.06, abstained=False)
    (per_cent,) = rows(scores("pct_stereotype", half).groups["all"])
    assert per_cent[2:] == ("58.5 (52.0 to 65.1)", "58.5 (52.0 to 65.1)", "+0.0 (-1.0 to 1.0)")
    share = Interval(value=0.585, low=0.52, high=0.65, abstained=False)
    (of_one,) = rows(scores("accuracy", share).groups["all"])
    assert of_one[2] == "0.585 (0.520 to 0.650)"


@pytest.mark.parametrize(("low", "high", "sure"), [(0.0, 0.3, False), (0.0, 0.1, True), (0.2, 0.6, True)])
def test_a_limit_inside_its_interval_is_said_to_be_unsure(low: float, high: float, sure: bool) -> None:
    value = (low + high) / 2
    found = scores("refusal_rate", Interval(value=value, low=low, high=high, abstained=False), 0.1, holds=value <= 0.1)
    (note,) = notes(found)
    assert ("both sides" not in note) is sure
    assert ("holds" in note) is (value <= 0.1)


def test_exposure_says_what_its_bits_mean() -> None:
    found = scores("exposure", Interval(value=2.0, low=1.0, high=2.5, abstained=False), 3.0, holds=True)
    assert "1.44 bits are chance" in " ".join(notes(found))
