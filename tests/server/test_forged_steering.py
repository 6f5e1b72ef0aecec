"""Fairness strategies read counts that a site may forge: whatever it claims, it moves the model by no more than its cap allows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos.fairness.counts import GroupCounts
from fedethos.fairness.histograms import pool
from fedethos.fairness.layout import GROUP_SCORES
from fedethos.job import Job
from fedethos.messages import Basis, EvaluateReply, Tables
from fedethos.server.measure import Measurement
from fedethos.server.plausibility import check_counts, leverage, most_records
from fedethos.server.site import Site
from fedethos.server.state import RunState
from fedethos.server.steering import site_shares, steered
from fedethos.strategies.averaging import weighted_mean

SIZE, CAP = 600, 0.3
SITES = [Site(f"site-{number}", number, 0.2, SIZE) for number in range(1, 6)]
FORGER = "site-1"

tables_of_a_site = st.lists(st.integers(0, 150), min_size=12, max_size=12).map(
    lambda cells: np.array(cells, dtype=np.int64).reshape(3, 2, 2)
)


def job(strategy: str, **fairness: object) -> Job:
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "forged",
            "model": {"path": "asset:minilm"},
            "data": {
                "path": "builtin:adult",
                "text": "{age}",
                "label": {"column": "y", "values": ["a", "b"], "favorable": "b"},
                "sensitive": {"sex": ["f", "m"]},
            },
            "privacy": {"mode": "none"},
            "federation": {"aggregation": "fedavg", "rounds": 5},
            "fairness": {"strategy": strategy, "every": 1, "thresholds": "fixed", **fairness},
            "robustness": {"weight_cap": CAP},
        }
    )


def honest() -> dict[str, Tables]:
    """About 600 training people a site, each with its own rates: (sex, label, decision), nobody unknown."""
    rng = np.random.default_rng(3)
    sites = {}
    for site in SITES:
        table = np.zeros((3, 2, 2), dtype=np.int64)
        for sex, label in np.ndindex(2, 2):
            table[sex, label] = rng.multinomial(150, rng.dirichlet([4.0, 4.0]))
        sites[site.name] = {GROUP_SCORES: table}
    return sites


def after_one_release(plan: Job, sites: dict[str, Tables]) -> RunState:
    def ask(arrays, split, round, layout) -> Measurement:
        shapes = layout.shapes(plan.attributes, 2)
        for name, tables in sites.items():
            (site,) = (site for site in SITES if site.name == name)
            check_counts(EvaluateReply(tables, Basis.UNPROTECTED), plan, site, "train", layout)
        return Measurement(pool(list(sites.values()), shapes), by_site=sites)

    start = RunState.start({}, {}, SITES)
    return steered(ask, RunState(1, start.arrays, start.memory), plan, SITES)[0]


@pytest.mark.parametrize("strategy", ["fairfed", "afl", "qfedavg"])
@settings(max_examples=40, deadline=None)
@given(forged=tables_of_a_site, rate=st.sampled_from([0.1, 1.0, 100.0]))
def test_a_site_never_weighs_more_than_its_cap_whatever_it_counts(strategy: str, forged: np.ndarray, rate: float) -> None:
    plan = job(strategy, **({"q": min(rate, 5.0)} if strategy == "qfedavg" else {"learning_rate": rate}))
    most = most_records(plan, SIZE, "train")
    forged = forged if forged.sum() <= most else forged * 0
    state = after_one_release(plan, honest() | {FORGER: {GROUP_SCORES: forged}})
    shares = site_shares(plan, state, SITES)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[FORGER] <= CAP + 1e-12
    rng = np.random.default_rng(0)
    updates = {name: {"w": rng.normal(size=7).astype(np.float32)} for name in shares}
    other = updates | {FORGER: {"w": updates[FORGER]["w"] + np.float32(50.0)}}
    means = [weighted_mean(list(sent.values()), [shares[name] for name in sent])["w"] for sent in (updates, other)]
    assert np.linalg.norm(means[1] - means[0]) <= CAP * np.linalg.norm(other[FORGER]["w"] - updates[FORGER]["w"]) * (1 + 1e-5)


@pytest.mark.parametrize("strategy", ["controller", "fedfb", "fedminmax", "term"])
@settings(max_examples=40, deadline=None)
@given(forged=tables_of_a_site)
def test_forged_counts_move_a_groups_rate_by_their_share_and_no_weight_beyond_its_bound(strategy: str, forged: np.ndarray) -> None:
    plan = job(strategy, max_weight=3.0)
    most = most_records(plan, SIZE, "train")
    forged = forged if forged.sum() <= most else forged * 0
    others = {name: tables for name, tables in honest().items() if name != FORGER}
    weights = after_one_release(plan, others | {FORGER: {GROUP_SCORES: forged}}).memory.steering.weights
    assert all(0.0 <= weight <= 3.0 for weight in weights)
    alone = sum(tables[GROUP_SCORES] for tables in others.values())
    rates = [GroupCounts.of(table, favorable=1).tpr.value for table in (alone, alone + forged)]
    for sex in range(2):
        bound = leverage(float(forged[sex, 1].sum()), float(alone[sex, 1].sum()))
        assert abs(rates[1][sex] - rates[0][sex]) <= bound + 1e-12


def test_more_people_than_a_site_declares_steer_nothing() -> None:
    plan = job("afl")
    forged = np.zeros((3, 2, 2), dtype=np.int64)
    forged[0, 1, 0] = most_records(plan, SIZE, "train") + 1
    with pytest.raises(Exception, match="AGG-750"):
        after_one_release(plan, honest() | {FORGER: {GROUP_SCORES: forged}})
