"""What a coordinator's operator does while a run goes on: pause, resume, a new key for a site, and what the hook hears of it."""

from __future__ import annotations

import json

import pytest
import yaml
from tests.deploy.stack import SEEDED, SITES, job_of

from fedethos.certificates import make_node_key
from fedethos.cli import run as fedethos
from fedethos.control.calling import call_control, is_healthy

pytestmark = pytest.mark.xdist_group("deploy")


@pytest.fixture(scope="module")
def undisturbed(stack):
    return stack.run_to_end(job_of("still", privacy=SEEDED))


def _begun(stack, name):
    path = stack.write_job(job_of(name, privacy=SEEDED))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["round"] >= 1)
    return run


def test_the_standard_health_check_says_that_the_coordinator_serves(stack):
    assert is_healthy(stack.state / "control.sock", "coordinator")


def test_a_paused_run_does_nothing_until_it_is_resumed_and_ends_as_if_it_had_not_been(stack, undisturbed):
    run = _begun(stack, "paused")
    assert fedethos(["server", "pause", run, *stack.server]) == 0
    assert stack.run(run)["status"] == "paused"
    assert fedethos(["server", "pause", run, *stack.server]) == 2  # RUN-974: no run fits
    assert fedethos(["server", "resume", run, *stack.server]) == 0
    folder = stack.ended(run)
    assert folder.read_result().metrics == undisturbed.read_result().metrics
    events = [json.loads(line) for line in (stack.folder / "heard").read_text().splitlines()]
    told = [event["event"] for event in events if event.get("run") == run and event["event"] != "round-started"]
    assert told == ["run-submitted", "run-started", "run-paused", "run-continued", "run-completed"]


def test_a_site_that_gets_another_key_goes_on_in_the_run(stack, undisturbed):
    run = _begun(stack, "rekeyed")
    site = SITES[1]
    assert stack.stop(site) == 0
    private, public = make_node_key()
    (stack.folder / site / "node.key").write_bytes(private)
    stack.approve(stack.folder / "rekeyed.yaml", (site,))  # an approval is signed with the node's key
    trust = stack.folder / "server" / "trust.yaml"
    words = yaml.safe_load(trust.read_text())
    words["revoked"].append(words["sites"][site]["public_key"])
    words["sites"][site]["public_key"] = public
    trust.write_text(yaml.safe_dump(words))
    stack.start(site)
    folder = stack.ended(run)
    assert folder.read_result().metrics == undisturbed.read_result().metrics
    assert {record.sites[site] for record in folder.read_rounds()[1:]} == {"sent"}


def test_a_run_that_is_stopped_ends_for_good(stack):
    run = _begun(stack, "stopped")
    assert fedethos(["server", "stop", run, *stack.server]) == 0
    assert stack.run(run)["status"] == "stopped"
    assert call_control(stack.state / "control.sock", "status", {})["superlink"]["alive"] is True
