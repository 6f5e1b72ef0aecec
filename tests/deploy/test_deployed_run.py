"""A job from submission to report over real processes, with and without somebody dying on the way."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.deploy.stack import SEEDED, SITES, WOMEN, job_of

from fedethos.cli import run as fedethos
from fedethos.privacy.ledger import read_ledger

pytestmark = pytest.mark.xdist_group("deploy")


@pytest.fixture(scope="module")
def private(stack):
    """A run with differential privacy, whose ServerApp is killed on the way."""
    path = stack.write_job(job_of("private") | {"scenarios": [WOMEN]})
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["round"] >= 1)
    stack.kill_child("fedethos.server.runner")
    return stack.ended(run)


def test_a_submitted_job_ends_with_a_result_and_a_report(stack, undisturbed, capsys):
    result = undisturbed.read_result()
    assert (result.status, result.rounds, result.engine) == ("completed", 4, "deployment")
    stack.until(undisturbed.report.exists)
    assert fedethos(["server", "status", *stack.server]) == 0
    shown = capsys.readouterr().out
    assert "3 of 3 sites online" in shown and undisturbed.path.name in shown


def test_a_scenario_counts_the_records_that_match_at_every_site(undisturbed):
    result = undisturbed.read_result()
    women, found = result.fairness["sex"].groups["Female"], result.scenarios["women"]
    assert found.count == women.count > 50
    assert (found.value.low, found.value.high) == pytest.approx((1.0 - women.accuracy.high, 1.0 - women.accuracy.low))
    assert found.holds is (None if women.accuracy.abstained else women.accuracy.value >= 0.5)


def test_a_scenario_of_a_private_run_is_one_more_table_that_the_ledgers_paid_for(stack, private):
    found = private.read_result().scenarios["women"]
    for site in SITES:
        state, _ = read_ledger(stack.folder / site / "ledger.sqlite")
        (plan,) = _plans(state, site)
        (paid,) = [one.event for one in plan.allotments if one.purpose.endswith("/test")]
        assert paid.tables == 3, "scores, sex, and the scenario"
    apart = paid.sigma * np.sqrt(2 * len(SITES) * 4)  # of the noise in two counts of the same women, each over four cells
    assert found.count == pytest.approx(private.read_result().fairness["sex"].groups["Female"].count, abs=6 * apart)


def test_a_private_run_charges_each_site_once_though_its_server_app_was_killed(stack, private):
    assert private.read_manifest().secure_rng is True
    assert private.read_manifest().marks == []
    for site in SITES:
        state, _ = read_ledger(stack.folder / site / "ledger.sqlite")
        assert [plan.run for plan in _plans(state, site)] == [private.path.name]
        assert 0.0 < private.read_result().privacy.sites[site].epsilon <= 8.0
    assert [len(record.epsilon) for record in private.read_rounds()] == [3, 3, 3, 3]


@pytest.mark.parametrize("victim", ["fedethos.server.runner", "fedethos.server.superlink_process", "coordinator"])
def test_after_a_kill_the_run_goes_on_and_ends_as_if_nothing_had_happened(stack, undisturbed, victim):
    path = stack.write_job(job_of(f"hurt-{victim.rpartition('.')[2].replace('_', '-')}", rounds=4, privacy=SEEDED))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["round"] >= 2)
    if victim == "coordinator":
        stack.kill("coordinator")
        stack.start_coordinator()
    else:
        stack.kill_child(victim)
    folder = stack.ended(run)
    _same(folder, undisturbed)


def _same(folder, undisturbed):
    ours, theirs = (load_file(one.adapter / "model.safetensors") for one in (folder, undisturbed))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    for one, other in zip(folder.read_rounds(), undisturbed.read_rounds(), strict=True):
        assert (one.round, one.epsilon, one.sites) == (other.round, other.epsilon, other.sites)
    assert folder.read_result().metrics == undisturbed.read_result().metrics


def _plans(state, site):
    """What a site's ledger has committed to."""
    return [one.plan for one in state.accounts[site].plans.values()]
