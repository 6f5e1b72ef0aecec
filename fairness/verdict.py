"""What may be concluded about one sensitive attribute, in sentences that a person can read.

A classifier that says the same to everybody has no gaps, and is not fair. So there is no verdict when the model hardly tells the
outcomes apart in some group, or when it selects far more or far fewer people than the base rate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.intervals import Estimate, critical
from fedethos.fairness.metrics import difference

LEAST_SEPARATION = 0.1
SELECTION_RANGE = (0.5, 2.0)
FOUR_FIFTHS = 0.8

FourFifths = Literal["pass", "fail", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """``status`` is ``none`` when nothing may be concluded; ``sentence`` then says why. ``four_fifths`` is None exactly then."""

    status: Literal["none", "measured"]
    four_fifths: FourFifths | None
    sentence: str

    def as_json(self) -> dict[str, str | None]:
        return {"status": self.status, "four_fifths": self.four_fifths, "sentence": self.sentence}


def judge(shown: GroupCounts, names: Sequence[str], everyone: GroupCounts, gaps: Mapping[str, Estimate], *, min_group_size: int) -> Verdict:
    """Verdict on one attribute.

    Parameters
    ----------
    shown : GroupCounts
        The groups that are not withheld, called ``names``.
    everyone : GroupCounts
        All people as one group.
    gaps : mapping
        Estimates by metric name, as in ``result.json``.
    min_group_size : int
        A group tells how well the model separates when it has this many people with the favorable label and as many without,
        whatever the noise in their counts.
    """
    reason = _near_constant(shown, names, everyone, min_group_size)
    if reason is not None:
        return Verdict("none", None, f"No verdict: {reason}")
    four_fifths = four_fifths_rule(gaps["demographic_parity_ratio"])
    return Verdict("measured", four_fifths, f"{_largest_gap(shown, names, gaps)} {_FOUR_FIFTHS_SENTENCES[four_fifths]}")


def four_fifths_rule(demographic_parity_ratio: Estimate) -> FourFifths:
    """Whether the smallest selection rate is at least 80 % of the largest, by the whole interval (EEOC 1978, 29 CFR 1607.4 D)."""
    low, high = demographic_parity_ratio.low, demographic_parity_ratio.high
    if low is None or high is None:
        return "cannot tell"
    return "pass" if low >= FOUR_FIFTHS else "fail" if high < FOUR_FIFTHS else "cannot tell"


_SPOKEN = {
    "equal_opportunity_difference": "equal-opportunity difference",
    "demographic_parity_difference": "demographic-parity difference",
    "equalized_odds_difference": "equalized-odds difference",
}

_FOUR_FIFTHS_SENTENCES: Mapping[FourFifths, str] = {
    "pass": "The four-fifths rule on selection rates holds over the whole interval.",
    "fail": "The four-fifths rule on selection rates is broken over the whole interval.",
    "cannot tell": "The data cannot tell whether the four-fifths rule on selection rates holds.",
}


def _near_constant(shown: GroupCounts, names: Sequence[str], everyone: GroupCounts, min_group_size: int) -> str | None:
    """Why the model counts as near-constant, or could not be shown not to be; None when it is neither."""
    if not shown.negatives.value.any() and not shown.negatives.variance.any():  # causal-lm, preference: not one, and no noise that says so
        return "every record brings its own right answer, so only the difference in accuracy compares groups."
    z = critical()
    fewest = [count.value - z * np.sqrt(count.variance) for count in (shown.positives, shown.negatives)]
    measurable = np.minimum(*fewest) >= min_group_size
    if not measurable.any():
        return (
            f"no group has {min_group_size} people with the favorable label and as many without, "
            "so nothing shows that the model is more than a constant."
        )
    separation = shown.tpr.value - shown.fpr.value
    weak = [name for name, tested, gap in zip(names, measurable, separation, strict=True) if tested and gap < LEAST_SEPARATION]
    if weak:
        return (
            f"in {_and(weak)} the true positive rate exceeds the false positive rate by less than {LEAST_SEPARATION:g}. "
            "The model hardly tells the outcomes apart, and a constant answer is not fair."
        )
    selected, favored = float(everyone.selection_rate.value[0]), float(everyone.positives.value[0] / everyone.people.value[0])
    low, high = SELECTION_RANGE
    if not low * favored <= selected <= high * favored:
        return (
            f"the model selects {selected:.1%} of the people, and {favored:.1%} have the favorable label. "
            f"Outside {low:g} to {high:g} times that share it is close to a constant answer, and a constant answer is not fair."
        )
    return None


def _largest_gap(shown: GroupCounts, names: Sequence[str], gaps: Mapping[str, Estimate]) -> str:
    tpr, fpr = shown.tpr, shown.fpr
    rates = {  # the more specific name first: equalized odds is often the gap of the true positive rates
        "equal_opportunity_difference": ("true positive rate", tpr),
        "demographic_parity_difference": ("selection rate", shown.selection_rate),
        "equalized_odds_difference": ("false positive rate", fpr) if difference(fpr) > difference(tpr) else ("true positive rate", tpr),
    }
    sizes = {name: gap.value for name in rates if (gap := gaps[name]).value is not None and not gap.abstained}
    if not sizes:
        return "No gap between groups is measurable with so few people."
    largest = max(sizes, key=lambda name: sizes[name] or 0.0)
    rate, values = rates[largest][0], rates[largest][1].value
    lowest, highest = names[int(np.nanargmin(values))], names[int(np.nanargmax(values))]
    return (
        f"The largest measurable gap is the {_SPOKEN[largest]}, between {gaps[largest].low:.3f} and {gaps[largest].high:.3f}: "
        f"the {rate} is lowest for {lowest} and highest for {highest}."
    )


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
