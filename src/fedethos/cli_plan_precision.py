"""The part of ``fedethos privacy plan`` that says how precisely gaps and scenarios will be known (``fairness/precision.py``)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import typer

from fedethos.errors import FedethosError
from fedethos.fairness.precision import GAPS, Gap, half_widths, least, people_needed, scenario_half_width, smallest_share
from fedethos.intersections import parts_of
from fedethos.job import Job
from fedethos.job_scenarios import RecordMetric, RecordScenario
from fedethos.scenario_words import scenario_metric
from fedethos.task_words import gap_words

Shares = Mapping[str, Sequence[float]]

_MATCHING = (0.1, 0.9)  # of a scenario, where nothing is given: it is of records that are not many


@dataclass(frozen=True)
class Precision:
    """What one gap between groups will be known to. ``half_width`` is of the 95 % interval.

    ``smallest_group``: the least share of the people in the smallest group at which the gap is measurable.
    ``test_share``: the least ``data.split.test`` at which it is; both None when nothing is enough.
    """

    attribute: str
    metric: Gap
    half_width: float
    tolerance: float
    measurable: bool
    smallest_group: float | None
    test_share: float | None


@dataclass(frozen=True)
class ScenarioPrecision:
    """What a scenario's metric will be known to, if ``matching`` is the share of the people who match its filter.

    ``smallest_matching``: the least such share at which it is measurable; ``test_share`` as of a gap.
    """

    scenario: str
    metric: RecordMetric
    matching: float
    half_width: float
    tolerance: float
    measurable: bool
    smallest_matching: float | None
    test_share: float | None


@dataclass(frozen=True)
class Tested:
    """The test people of all sites, as far as public numbers tell.

    Attributes
    ----------
    trained : int
        Declared training people of all sites.
    variance : float
        Variance of the noise in one cell of the pooled tables.
    tolerance : float
        Widest half-width that counts as measurable.
    shares : mapping
        Shares of the groups, by table (``read_shares``).
    """

    job: Job
    trained: int
    variance: float
    tolerance: float
    favorable_share: float
    shares: Shares

    @property
    def test(self) -> float:
        return self.everybody * self.job.data.split.test

    @property
    def everybody(self) -> float:
        return self.trained / self.job.data.split.train

    @property
    def most(self) -> float:
        """Test people if nobody trained."""
        return self.everybody * (1.0 - self.job.data.split.validation)

    def gaps(self) -> list[Precision]:
        words = gap_words(self.job, dict.fromkeys(GAPS, ""))
        return [self._gap(attribute, gap) for attribute in self.job.attributes for gap in GAPS if gap in words]

    def _gap(self, attribute: str, gap: Gap) -> Precision:
        shares, labels = self.shares[attribute], len(self.job.data.label.values)
        facts = {"favorable_share": self.favorable_share, "noise_variance": self.variance}
        half = half_widths(shares, self.test, labels=labels, **facts)[gap]
        group = smallest_share(gap, len(shares), self.test, tolerance=self.tolerance, labels=labels, **facts)
        needed = people_needed(gap, shares, self.most, tolerance=self.tolerance, labels=labels, **facts)
        return Precision(attribute, gap, half, self.tolerance, half <= self.tolerance, group, self._split(needed))

    def scenarios(self) -> list[ScenarioPrecision]:
        return [self._scenario(asked) for asked in self.job.scenarios]

    def _scenario(self, asked: RecordScenario) -> ScenarioPrecision:
        facts = {"favorable_share": self.favorable_share, "noise_variance": self.variance}

        def half_width(share: float, people: float) -> float:
            return scenario_half_width(asked.metric, share, people, labels=len(self.job.data.label.values), **facts)

        matching = self.shares[asked.table][0]
        half = half_width(matching, self.test)
        most = 0.5 if asked.metric.endswith("_difference") else 1.0  # of a difference the smaller side decides
        share = least(lambda share: half_width(share, self.test) <= self.tolerance, most)
        needed = least(lambda people: half_width(matching, people) <= self.tolerance, self.most)
        return ScenarioPrecision(
            asked.name, asked.metric, matching, half, self.tolerance, half <= self.tolerance, share, self._split(needed)
        )

    def _split(self, needed: float | None) -> float | None:
        return None if needed is None else needed / self.everybody


def read_shares(job: Job, given: Sequence[str]) -> dict[str, list[float]]:
    """Shares of the declared groups by attribute, and of who matches and who does not by scenario; CFG-232 for what is no list of shares.

    Where nothing is given: of an attribute equal, of an intersection as if its parts were independent, of a scenario one tenth.
    """
    shares = {attribute: [1.0 / len(groups)] * len(groups) for attribute, groups in job.attributes.items()}
    shares |= {one.table: list(_MATCHING) for one in job.scenarios}
    for text in given:
        attribute, _, values = text.partition("=")
        try:
            numbers = [float(value) for value in values.split(",")]
        except ValueError:
            numbers = []
        if attribute not in shares or len(numbers) != len(shares[attribute]) or min(numbers) <= 0.0:
            raise FedethosError(
                "CFG-232",
                "--shares does not give one positive number for each group of a sensitive attribute or scenario.",
                where="--shares",
                fix="In the order of the job, for example --shares sex=0.33,0.67; of a scenario --shares scenario:NAME=0.1,0.9.",
            )
        shares[attribute] = [number / sum(numbers) for number in numbers]
    named = {text.partition("=")[0] for text in given}
    crossed = {attribute: parts_of(attribute) for attribute in job.attributes if attribute not in {*named, *job.data.sensitive}}
    return shares | {
        name: [math.prod(cell) for cell in itertools.product(*(shares[part] for part in parts))] for name, parts in crossed.items()
    }


def print_precision(people: Tested, gaps: Sequence[Precision], scenarios: Sequence[ScenarioPrecision], *, equal: bool) -> None:
    """Lines of the plan. ``equal``: no shares of groups were given."""
    groups = "groups of equal size" if equal else "groups as given"
    favorable = "" if people.job.data.label.column is None else f", {people.favorable_share:.0%} with the favorable label"
    typer.echo(f"measuring    {people.test:,.0f} test people of all sites, {groups}{favorable}")
    width = max((len(name) for name in (*(one.attribute for one in gaps), *(one.scenario for one in scenarios))), default=0)
    for one in gaps:
        typer.echo(
            f"  {one.attribute:<{width}}  {scenario_metric(one.metric, people.job).lower():<29}  ±{one.half_width:.3f}  {_verdict(one)}"
        )
    if scenarios:
        typer.echo("scenarios    of the same people")
    for asked in scenarios:
        metric = scenario_metric(asked.metric, people.job).lower()
        typer.echo(f"  {asked.scenario:<{width}}  {metric:<29}  ±{asked.half_width:.3f}  {_scenario_verdict(asked)}")


def _verdict(one: Precision) -> str:
    if not one.measurable:
        return f"not measurable at {one.tolerance:g}: {_needed(one.test_share)}"
    if one.smallest_group is None:
        return "measurable"
    return f"measurable while the smallest group has {_up(one.smallest_group):.0%} of the people; {_needed(one.test_share)}"


def _scenario_verdict(one: ScenarioPrecision) -> str:
    if one.measurable and one.smallest_matching is not None:
        return f"if {one.matching:.0%} match: measurable, while {_up(one.smallest_matching):.0%} do; {_needed(one.test_share)}"
    ways = [] if one.smallest_matching is None else [f"if {_up(one.smallest_matching):.0%} match"]
    ways += [] if one.test_share is None else [f"with a test split of {_up(one.test_share)}"]
    said = f"it is {' or '.join(ways)}" if ways else "no share and no test split is large enough"
    return f"if {one.matching:.0%} match: not measurable at {one.tolerance:g}; {said}"


def _needed(test_share: float | None) -> str:
    return "no test split is large enough" if test_share is None else f"it takes a test split of {_up(test_share)}"


def _up(share: float) -> float:
    return math.ceil(share * 100.0) / 100.0
