"""What a coordinator's operator does while a run goes on: pause, resume, stop, a new key for a site, and what the hook hears of it."""

from __future__ import annotations

import re

import pytest
import yaml
from tests.deploy.stack import SEEDED, SITES, job_of

from fedethos.cli import run as fedethos
from fedethos.control.calling import is_healthy

pytestmark = pytest.mark.xdist_group("deploy")


def _begun(stack, name):
    path = stack.write_job(job_of(name, rounds=4, privacy=SEEDED))
    stack.approve(path)
    run = stack.submit(path)
    stack.until(lambda: stack.run(run)["round"] >= 1)
    return run


def test_a_paused_run_does_nothing_until_it_is_resumed_and_ends_as_if_it_had_not_been(stack, undisturbed):
    assert is_healthy(stack.state / "control.sock", "coordinator")
    run = _begun(stack, "paused")
    assert fedethos(["server", "pause", run, *stack.server]) == 0
    assert stack.run(run)["status"] == "paused"
    assert fedethos(["server", "pause", run, *stack.server]) == 2  # RUN-974: no run fits
    assert fedethos(["server", "resume", run, *stack.server]) == 0
    folder = stack.ended(run)
    assert folder.read_result().metrics == undisturbed.read_result().metrics
    told = [event["event"] for event in stack.heard() if event.get("run") == run and event["event"] != "round-started"]
    assert told[:4] == ["run-submitted", "run-started", "run-paused", "run-continued"]
    stack.until(lambda: {"event": "run-completed", "run": run}.items() <= stack.heard()[-1].items())


def test_a_site_that_rotates_its_key_goes_on_in_the_run(stack, undisturbed, capsys):
    run = _begun(stack, "rekeyed")
    site = SITES[1]
    assert stack.stop(site) == 0
    document = str(stack.folder / site / "site.yaml")
    assert fedethos(["client", "rotate-key", document]) == 0
    public = re.findall(r"^public +(\S+ \S+)$", capsys.readouterr().out, re.MULTILINE)[-1]
    trust = stack.folder / "server" / "trust.yaml"
    words = yaml.safe_load(trust.read_text())
    words["revoked"].append(words["sites"][site]["public_key"])
    words["sites"][site]["public_key"] = public
    trust.write_text(yaml.safe_dump(words))
    assert fedethos(["client", "rotate-key", document, "--activate"]) == 0
    stack.start(site)
    folder = stack.ended(run)
    assert folder.read_result().metrics == undisturbed.read_result().metrics
    assert {record.sites[site] for record in folder.read_rounds()[1:]} == {"sent"}


def test_a_run_that_is_stopped_ends_for_good_and_the_coordinator_goes_on(stack):
    run = _begun(stack, "stopped")
    assert fedethos(["server", "stop", run, *stack.server]) == 0
    assert stack.run(run)["status"] == "stopped"
    assert fedethos(["server", "resume", run, *stack.server]) == 2
    assert stack.status()["superlink"]["alive"] is True
