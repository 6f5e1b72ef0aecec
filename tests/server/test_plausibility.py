"""Forged counts: what is refused, what honest sites may send, and how far one site of five can move a pooled metric."""

import math

import numpy as np
import pytest

from fedethos.errors import FedethosError
from fedethos.fairness.histograms import BINS, OVERALL, pool
from fedethos.fairness.layout import FINE, SCORES, Layout
from fedethos.job import Job
from fedethos.messages import Basis, EvaluateReply, Tables
from fedethos.privacy.counts import plan_counts
from fedethos.server.measure import Measurement, describe, shapes_of
from fedethos.server.plausibility import check_counts, leverage, most_records
from fedethos.server.site import Site

SIZE = 600
SITE = Site("site-1", 1, 0.2, SIZE)


def job(mode: str = "none", **data: object) -> Job:
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "counts",
            "model": {"path": "asset:minilm"},
            "data": {
                "path": "builtin:adult",
                "text": "{age}",
                "label": {"column": "y", "values": ["a", "b"], "favorable": "b"},
                "sensitive": {"sex": ["f", "m"], "race": ["x", "y", "z"]},
                **data,
            },
            "privacy": {"mode": mode},
        }
    )


def honest_tables(rng: np.random.Generator, people: int, *, tpr: float = 0.8, fpr: float = 0.2) -> Tables:
    label = rng.integers(0, 2, people)
    favorable = rng.random(people) < np.where(label == 1, tpr, fpr)
    tables = {name: np.zeros((groups, 2, BINS), dtype=np.int64) for name, groups in (("sex", 3), ("race", 4))}
    for table in tables.values():
        np.add.at(table, (rng.integers(0, len(table) - 1, people), label, np.where(favorable, 40, 20)), 1)
    return tables


def exact(tables: Tables) -> EvaluateReply:
    return EvaluateReply(tables, Basis.UNPROTECTED)


def code_of(reply: EvaluateReply, plan: Job, layout: Layout) -> str | None:
    try:
        check_counts(reply, plan, SITE, "test", layout)
    except FedethosError as refusal:
        return refusal.code
    return None


def test_no_honest_site_is_refused() -> None:
    """Sites of every real size that rounds up to the declared one, split person by person."""
    rng, plan = np.random.default_rng(0), job()
    limit = most_records(plan, SIZE, "test")
    population = int(SIZE / 0.7 * 1.2)
    drawn = rng.choice(3, p=(0.7, 0.1, 0.2), size=(20_000, population))
    keeps = np.cumsum(drawn == 0, axis=1) <= SIZE  # as many people as leave no more than the declared size in training
    assert ((drawn == 2) & keeps).sum(axis=1).max() <= limit
    assert limit < 1.8 * SIZE * 0.2 / 0.7


def test_more_people_than_the_declared_size_allows_are_refused() -> None:
    limit = most_records(job(), SIZE, "test")
    rng = np.random.default_rng(1)
    assert code_of(exact(honest_tables(rng, limit)), job(), Layout()) is None
    assert code_of(exact(honest_tables(rng, limit + 1)), job(), Layout()) == "AGG-750"


def test_persons_without_privacy_have_no_such_limit_and_with_it_their_rows_count() -> None:
    assert most_records(job(person_id="p"), SIZE, "test") is None
    by_record = job("local", person_id="p").model_copy(update={"privacy": job("local").privacy.model_copy(update={"unit": "record"})})
    assert most_records(by_record, SIZE, "test") is None
    assert most_records(job("local", person_id="p"), SIZE, "test") == 4 * most_records(job("local"), SIZE, "test")


@pytest.mark.parametrize("forged_correct", [True, False])
def test_one_forger_of_five_moves_pooled_accuracy_by_no_more_than_its_people_allow(forged_correct: bool) -> None:
    """The strongest forgery that is not refused, against the bound b'/(b + b'), computed from the tables by hand."""
    plan, rng = job(), np.random.default_rng(2)
    honest = [honest_tables(rng, 160) for _ in range(4)]
    limit = most_records(plan, SIZE, "test")
    forged = {name: np.zeros_like(table) for name, table in honest[0].items()}
    for table in forged.values():
        table[0, 1, BINS - 1 if forged_correct else 0] = limit
    check_counts(exact(forged), plan, SITE, "test", Layout())

    def accuracy(sites: list[Tables]) -> float:
        summary = describe(Measurement(pool(sites, shapes_of(plan, Layout()))), 32, plan)
        return summary.metrics["accuracy"].value

    before, after = accuracy(honest), accuracy([*honest, forged])
    bound = leverage(limit, 4 * 160)
    assert bound == pytest.approx(limit / (640 + limit))
    assert 0.5 * bound * (1 - before if forged_correct else before) < abs(after - before) <= bound
    # the pooled value is a mean weighted by people: the move is exactly bound · |forged rate − honest rate|
    assert abs(after - before) == pytest.approx(bound * abs(forged_correct - before), abs=1e-12)


LAYOUT = Layout(cuts=(16, 32, 48), edge=32)


def noisy(tables: Tables, rng: np.random.Generator, sigma: float) -> Tables:
    return {name: table + np.rint(rng.normal(0, sigma, table.shape)).astype(np.int64) for name, table in LAYOUT.tables(tables).items()}


def sigma_of(plan: Job) -> float:
    return next(one.release.sigma for one in plan_counts(plan) if one.population == "test")


def charged(tables: Tables, sigma: float) -> EvaluateReply:
    return EvaluateReply(tables, Basis.CHARGED, sigma=sigma, epsilon=2.0)


def test_noisy_counts_of_honest_sites_pass() -> None:
    plan, rng = job("local"), np.random.default_rng(3)
    for people in (0, 30, 170):
        for sigma in (sigma_of(plan), 3 * sigma_of(plan)):
            for _ in range(50):
                assert code_of(charged(noisy(honest_tables(rng, people), rng, sigma), sigma), plan, LAYOUT) is None


def test_what_noise_does_not_explain_is_refused() -> None:
    plan, rng = job("local"), np.random.default_rng(4)
    sigma = sigma_of(plan)
    good = noisy(honest_tables(rng, 100), rng, sigma)

    def changed(name: str, by: int, *, spread: bool = False) -> EvaluateReply:
        table = good[name].copy()
        table[(0, *[0] * (table.ndim - 1))] += by
        if spread:  # the same people, somewhere else
            table[(0, *[0] * (table.ndim - 2), 1)] -= by
        return charged({**good, name: table}, sigma)

    assert code_of(changed("sex", -(100 + math.ceil(8 * sigma)), spread=True), plan, LAYOUT) == "AGG-751"
    assert code_of(changed("sex", math.ceil(7 * sigma * math.sqrt(14)) + 20), plan, LAYOUT) == "AGG-752"
    assert code_of(changed("race", 100), plan, LAYOUT) == "AGG-752"
    huge = {name: table * 10 for name, table in good.items()}
    assert code_of(charged(huge, sigma), plan, LAYOUT) == "AGG-750"


def test_a_claimed_noise_that_would_hide_forgery_or_narrow_intervals_is_refused() -> None:
    plan, rng = job("local"), np.random.default_rng(5)
    tables = noisy(honest_tables(rng, 100), rng, sigma_of(plan))
    for factor in (0.5, 5.0, 1e6):
        assert code_of(charged(tables, factor * sigma_of(plan)), plan, LAYOUT) == "AGG-753"
    scores = {SCORES: Layout(cuts=FINE).tables(honest_tables(rng, 100))[SCORES]}
    assert code_of(charged(scores, sigma_of(plan)), plan, Layout(cuts=FINE)) == "AGG-753"  # no such release of test people is planned


def test_without_an_attribute_one_table_of_everybody_is_checked() -> None:
    plan = job(sensitive={})
    limit = most_records(plan, SIZE, "test")
    table = np.zeros((1, 2, BINS), dtype=np.int64)
    table[0, 0, 0] = limit + 1
    assert code_of(exact({OVERALL: table}), plan, Layout()) == "AGG-750"
