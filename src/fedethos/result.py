"""``result.json``: the final table of a run. Its keys are fixed; other tools read them.

Every key is always present. A released number is an ``Interval``; under basis ``oracle`` the values are exact and the
intervals are of sampling alone. The oracle's own numbers are plain: only a simulation can see them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.job_scenarios import RecordMetric

Basis = Literal["released", "unprotected", "oracle"]
Count = Annotated[int, Field(ge=0)]
MetricName = Literal["accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy"]
GapName = Literal["demographic_parity_difference", "demographic_parity_ratio", "equalized_odds_difference", "equal_opportunity_difference"]
Seconds = Annotated[float, Field(ge=0.0)]


class Record(BaseModel):
    """Base of every record: strict, no unknown key, no NaN, no value in an error text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class Interval(Record):
    """A number with its 95 % interval. ``abstained``: not measurable or withheld; then ``value`` is null.

    An abstained interval may keep its bounds: they say how little is known.
    """

    value: float | None
    low: float | None
    high: float | None
    abstained: bool

    @model_validator(mode="after")
    def _never_a_bare_number(self) -> Interval:
        if (self.low is None) != (self.high is None) or (self.low is not None and self.high is not None and self.low > self.high):
            raise PydanticCustomError("interval", "An interval needs both bounds in order, or neither.")
        if self.value is None and not self.abstained:
            raise PydanticCustomError("interval", "A value is missing, but abstained is false.")
        if self.value is not None and (self.abstained or self.low is None):
            raise PydanticCustomError("interval", "A value stands without its interval, or beside abstained.")
        return self


class Metrics(Record):
    accuracy: Interval
    balanced_accuracy: Interval
    f1: Interval
    roc_auc: Interval
    worst_group_accuracy: Interval
    response_perplexity: Interval | None = None  # of causal-lm, else null

    def of(self, name: MetricName) -> Interval:
        value: Interval = getattr(self, name)
        return value


class NotReleased(Record):
    """``{}``: nothing was released."""


class Group(Record):
    """Rates of the favorable prediction; ``count`` is null where the group is withheld."""

    count: int | None
    selection_rate: Interval
    tpr: Interval
    fpr: Interval
    accuracy: Interval


class Attribute(Record):
    """Gaps between the groups of one sensitive attribute, with fairlearn's names."""

    demographic_parity_difference: Interval
    demographic_parity_ratio: Interval
    equalized_odds_difference: Interval
    equal_opportunity_difference: Interval
    groups: dict[str, Group]

    def of(self, name: GapName) -> Interval:
        value: Interval = getattr(self, name)
        return value


class ClassRates(Record):
    """Of one label against the rest; ``count``: test people who have it."""

    precision: Interval
    recall: Interval
    f1: Interval
    count: int


class ClassGap(Record):
    """How the true positive rate (recall) of one label differs between groups, and what it is in each."""

    true_positive_rate_difference: Interval
    groups: dict[str, Interval]


class Classes(Record):
    """Where there are more than two labels: rates by label, and by attribute and label."""

    worst_class_recall: Interval
    labels: dict[str, ClassRates]
    fairness: dict[str, dict[str, ClassGap]]


class OracleMetrics(Record):
    accuracy: float | None
    balanced_accuracy: float | None
    f1: float | None
    roc_auc: float | None
    worst_group_accuracy: float | None
    response_perplexity: float | None = None


class OracleGroup(Record):
    count: Count
    selection_rate: float | None
    tpr: float | None
    fpr: float | None
    accuracy: float | None


class OracleAttribute(Record):
    demographic_parity_difference: float | None
    demographic_parity_ratio: float | None
    equalized_odds_difference: float | None
    equal_opportunity_difference: float | None
    groups: dict[str, OracleGroup]


class OracleClassRates(Record):
    precision: float | None
    recall: float | None
    f1: float | None
    count: int


class OracleClassGap(Record):
    true_positive_rate_difference: float | None
    groups: dict[str, float | None]


class OracleClasses(Record):
    worst_class_recall: float | None
    labels: dict[str, OracleClassRates]
    fairness: dict[str, dict[str, OracleClassGap]]


class SiteAccuracy(Record):
    """On a site's test people, exact: of the global adapter, of the site's own one."""

    global_accuracy: float | None
    personal_accuracy: float | None


class PersonalOracle(Record):
    """Exact values of the personal adapters, pooled; and accuracy by site."""

    metrics: OracleMetrics
    fairness: dict[str, OracleAttribute]
    sites: dict[str, SiteAccuracy]


class Personal(Record):
    """Every site's personal adapter on its own people, pooled; abstained where the job releases no counts of them."""

    metrics: Metrics
    fairness: dict[str, Attribute]
    oracle: PersonalOracle | None


class People(Record):
    train: Count
    validation: Count
    test: Count


class Oracle(Record):
    """Exact pooled values. Null outside simulations."""

    metrics: OracleMetrics
    fairness: dict[str, OracleAttribute]
    baseline: OracleMetrics
    people: People
    classes: OracleClasses | None
    scenarios: dict[str, float | None]


class ScenarioResult(Record):
    """One of the job's scenarios on the test people. ``count`` who match its filter, null where they are withheld; ``holds`` null where
    the metric is not measurable, which is no pass."""

    metric: RecordMetric
    count: int | None
    value: Interval
    at_most: float
    holds: bool | None


class SitePrivacy(Record):
    """Epsilon and delta are null under ``privacy.mode: none``."""

    epsilon: float | None
    delta: float | None
    steps: Count
    releases: Count


class PrivacySummary(Record):
    unit: str
    adjacency: str
    accountant: str | None
    secure_rng: bool
    sites: dict[str, SitePrivacy]


class Communication(Record):
    bytes_up: Count
    bytes_down: Count


class Result(Record):
    name: str
    status: Literal["completed", "stopped", "failed"]
    rounds: Count
    seconds: Seconds
    engine: str
    basis: Basis
    group_aware: bool  # decisions used the sensitive attribute; not to be compared with a run that did not
    oracle: Oracle | None
    baseline: Metrics | NotReleased
    metrics: Metrics
    fairness: dict[str, Attribute]
    classes: Classes | None  # null for two labels
    personal: Personal | None  # null without training.personal
    scenarios: dict[str, ScenarioResult]  # empty where nothing was counted, or the job has none
    privacy: PrivacySummary
    communication: Communication
    aggregation_error: float

    @property
    def base_response_perplexity(self) -> float | None:
        """That of the untrained base model, as ``base_value``."""
        if isinstance(self.baseline, Metrics):
            return self.baseline.response_perplexity.value if self.baseline.response_perplexity else None
        return self.oracle.baseline.response_perplexity if self.basis == "oracle" and self.oracle is not None else None

    def base_value(self, name: MetricName) -> float | None:
        """The untrained base model's value on the same people, exact or released as ``basis`` says; None if it was not released."""
        if isinstance(self.baseline, Metrics):
            return self.baseline.of(name).value
        if self.basis == "oracle" and self.oracle is not None:
            value: float | None = getattr(self.oracle.baseline, name)
            return value
        return None


def in_declared_order(fairness: Mapping[str, Attribute], declared: Mapping[str, Sequence[str]]) -> dict[str, Attribute]:
    """Attributes and groups in the job's order (canonical JSON sorts them); what the job does not name comes last."""
    ordered = {}
    for attribute in sorted(fairness, key=lambda name: _place(name, list(declared))):
        groups, known = fairness[attribute].groups, declared.get(attribute, ())
        placed = sorted((_place(name, known), name) for name in groups)
        ordered[attribute] = fairness[attribute].model_copy(update={"groups": {name: groups[name] for _, name in placed}})
    return ordered


def _place(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name), "") if name in known else (len(known), name)


def result_schema() -> dict[str, object]:
    """JSON Schema of ``result.json``."""
    return Result.model_json_schema()
