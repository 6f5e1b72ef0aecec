"""Accounts, plans, caps and receipts. Plans are counts with discrete Gaussian noise, whose cost has a closed form."""

import copy
import dataclasses
import hashlib
import multiprocessing
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedethos.caps import Caps
from fedethos.errors import FedethosError
from fedethos.privacy.composition import epsilon
from fedethos.privacy.events import Allotment, CountRelease
from fedethos.privacy.ledger import Ledger, quote, read_ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.ledger_plan import CommittedPlan, Receipt, Release
from fedethos.privacy.ledger_state import LedgerState
from fedethos.privacy.renyi import RenyiFilter

JOB, OTHER_JOB = "a" * 64, "b" * 64


def caps(lifetime: float = 8.0, job: float | None = None, rounds: int = 100, delta: float = 1e-5) -> Caps:
    return Caps(lifetime_epsilon=lifetime, per_job_epsilon=job or lifetime, delta=delta, rounds=rounds)


def open_account(ledger: Ledger, limits: Caps | None = None, *, simulated: bool = False) -> None:
    ledger.open_account("patients", caps=limits or caps(), unit="record", adjacency="add-remove", simulated=simulated)


def counts(sigma: float, times: int, purpose: str = "train") -> Allotment:
    return Allotment(purpose=purpose, event=CountRelease(sigma=sigma, rows=1, tables=1, population="train"), times=times)


def spending(
    run: str = "r1", *, sigma: float = 10.0, times: int = 5, budget: float = 8.0, job: str = JOB, seeded: bool = False
) -> SpendingPlan:
    return SpendingPlan(
        account="patients",
        job_sha256=job,
        run=run,
        unit="record",
        adjacency="add-remove",
        epsilon=budget,
        delta=1e-5,
        allotments=(counts(sigma, times),),
        seeded=seeded,
    )


def send(plan: CommittedPlan, round: int, reply: bytes = b"reply") -> int:
    receipt = plan.reserve("train", round)
    plan.record(receipt.release("value", event=receipt.event), reply)
    return receipt.number


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as ledger:
        open_account(ledger)
        yield ledger


# --- caps ---


def test_plan_is_charged_in_full_before_anything_is_released(ledger: Ledger) -> None:
    ledger.commit(spending())
    account = ledger.accounts["patients"]
    assert account.epsilon == pytest.approx(epsilon([counts(10.0, 5)], delta=1e-5, adjacency="add-remove"))
    lifetime = account.lifetime_filter(account.plans.values())
    assert lifetime.spent == pytest.approx(lifetime.order * 5 / 200)
    assert account.epsilon_left == pytest.approx(lifetime.rho_cap - lifetime.spent)


def test_single_plan_may_use_the_whole_lifetime_and_then_nothing_fits(path: Path) -> None:
    whole = spending(sigma=0.6, times=1)
    cost = epsilon(whole.allotments, delta=1e-5, adjacency="add-remove")
    with Ledger(path) as ledger:
        open_account(ledger, caps(lifetime=cost + 0.001))
        ledger.commit(dataclasses.replace(whole, epsilon=50.0))
        with pytest.raises(FedethosError, match="PRIV-310"):
            ledger.commit(spending("r2", sigma=500.0, times=1))


def test_lifetime_counts_over_jobs_and_the_refusal_says_what_is_left(ledger: Ledger) -> None:
    for number in range(3):
        ledger.commit(spending(sigma=3.0, times=6, job=str(number) * 64))
    left = ledger.accounts["patients"].epsilon_left
    with pytest.raises(FedethosError) as refusal:
        ledger.commit(spending(sigma=2.0, times=6, job=OTHER_JOB))
    order = RenyiFilter.opened(8.0, 1e-5).order
    assert (refusal.value.code, refusal.value.exit_code) == ("PRIV-310", 4)
    words = refusal.value.what.split()
    assert refusal.value.what.startswith("This site has ") and "of its lifetime budget left and the run needs" in refusal.value.what
    assert float(words[3]) == pytest.approx(left, abs=0.011)
    assert float(words[-4].rstrip(".")) == pytest.approx(order * 6 / 8, abs=0.011)
    assert refusal.value.what.endswith("Nothing was sent.")
    assert len(ledger.accounts["patients"].plans) == 3


def test_job_cap_counts_over_the_runs_of_a_job(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger, caps(lifetime=20.0, job=3.0))
        ledger.commit(spending("r1", sigma=4.0))
        with pytest.raises(FedethosError, match="PRIV-310 At this site the job has"):
            ledger.commit(spending("r2", sigma=3.0))
        ledger.commit(spending("r1", sigma=4.0, job=OTHER_JOB))


def test_filters_never_let_more_pass_than_the_cap(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger, caps(lifetime=3.0))
        accepted = []
        for number in range(30):
            plan = spending(sigma=4.0 + number % 5, times=1 + number % 3, job=f"{number:064d}")
            try:
                ledger.commit(plan)
                accepted += plan.allotments
            except FedethosError as refusal:
                assert refusal.code == "PRIV-310"
        assert 1.5 < epsilon(accepted, delta=1e-5, adjacency="add-remove") <= ledger.accounts["patients"].epsilon <= 3.0


def test_refreshed_file_or_reopened_ledger_gives_no_new_budget(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger)
        send(ledger.commit(dataclasses.replace(spending(times=2), evidence="export of January")), 1)
        spent = ledger.accounts["patients"].epsilon
    with Ledger(path) as ledger:
        open_account(ledger)
        plan = ledger.commit(dataclasses.replace(spending(times=2), evidence="export of June"))
        assert ledger.accounts["patients"].epsilon == spent
        send(plan, 2)
        with pytest.raises(FedethosError, match="PRIV-315"):
            plan.reserve("train", 3)


@pytest.mark.parametrize("sigma", [3.0, 2.0, 1.2])
def test_a_quote_is_what_commit_would_charge_and_charges_nothing(path: Path, sigma: float) -> None:
    """From balances that were only read, for an account that is open or not yet, one plan after the other."""
    limits = caps()
    state = LedgerState()
    for run in ("first", "second", "third"):
        plan = spending(run, sigma=sigma, times=4)
        try:
            account, charge = quote(state, plan, limits)
        except FedethosError as refusal:
            quoted = refusal.code
        else:
            quoted = charge.epsilon
            assert account.caps == limits
        with Ledger(path) as ledger:
            open_account(ledger, limits)
            try:
                ledger.commit(plan)
            except FedethosError as refusal:
                assert quoted == refusal.code
        state, _ = read_ledger(path)
        found = state.accounts["patients"].find(plan.job_sha256, run)
        if found is not None:
            assert quoted == found.charge.epsilon == quote(state, plan, limits)[1].epsilon  # committed: its own charge


def test_a_quote_refuses_looser_caps_and_another_unit(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger, caps())
    state, _ = read_ledger(path)
    with pytest.raises(FedethosError, match="PRIV-314"):
        quote(state, spending(), caps(lifetime=9.0))
    with pytest.raises(FedethosError, match="PRIV-313"):
        quote(state, dataclasses.replace(spending(), unit="person"), caps())


def test_plan_must_keep_its_own_epsilon(ledger: Ledger) -> None:
    with pytest.raises(FedethosError, match="PRIV-301 This plan costs epsilon"):
        ledger.commit(spending(sigma=1.0, budget=2.0))


def test_cost_that_cannot_be_bounded_is_refused(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger, caps(delta=1e-40))
        with pytest.raises(FedethosError, match="PRIV-310"):
            ledger.commit(spending(sigma=1.0, times=1))


def test_more_rounds_than_the_site_allows_are_refused(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger, caps(rounds=4))
        with pytest.raises(FedethosError, match="PRIV-311"):
            ledger.commit(spending(times=5))


def test_run_keeps_the_plan_it_began_with(ledger: Ledger) -> None:
    ledger.commit(spending())
    with pytest.raises(FedethosError, match="PRIV-316"):
        ledger.commit(spending(sigma=11.0))


def test_plan_names_each_purpose_once(ledger: Ledger) -> None:
    for allotments in ((), (counts(10.0, 1), counts(20.0, 1))):
        with pytest.raises(FedethosError, match="PRIV-304"):
            ledger.commit(dataclasses.replace(spending(), allotments=allotments))


def test_account_counts_one_kind_of_thing(ledger: Ledger) -> None:
    for wrong in (
        dataclasses.replace(spending(), account="staff"),
        dataclasses.replace(spending(), unit="person"),
        dataclasses.replace(spending(), adjacency="replace-one"),
        spending(seeded=True),
    ):
        with pytest.raises(FedethosError, match="PRIV-313"):
            ledger.commit(wrong)
    with pytest.raises(FedethosError, match="PRIV-313"):
        open_account(ledger, simulated=True)


def test_simulated_account_is_never_valid_in_a_deployment(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger, simulated=True)
        with pytest.raises(FedethosError, match="PRIV-313"):
            open_account(ledger)


def test_accounts_in_one_file_do_not_share_budgets(ledger: Ledger) -> None:
    ledger.open_account("staff", caps=caps(1.0), unit="record", adjacency="add-remove", simulated=False)
    ledger.commit(spending())
    assert ledger.accounts["staff"].epsilon == 0.0
    assert ledger.accounts["staff"].epsilon_left == 1.0


@pytest.mark.parametrize("looser", [caps(8.1), caps(8.0, rounds=101), caps(8.0, delta=1e-4), caps(8.0, delta=1e-6)])
def test_caps_are_never_loosened(ledger: Ledger, looser: Caps) -> None:
    with pytest.raises(FedethosError, match="PRIV-314"):
        open_account(ledger, looser)


def test_tightened_caps_hold_for_what_is_committed_already(ledger: Ledger) -> None:
    plan = ledger.commit(spending(sigma=2.0))
    send(plan, 1)
    order = ledger.accounts["patients"].opened.lifetime_order
    open_account(ledger, caps(2.0))
    assert ledger.accounts["patients"].opened.lifetime_order == order
    with pytest.raises(FedethosError, match="PRIV-310"):
        plan.reserve("train", 2)
    with pytest.raises(FedethosError, match="PRIV-314"):
        open_account(ledger, caps(8.0))


# --- rounds ---


def test_rounds_are_drawn_down_and_no_further(ledger: Ledger) -> None:
    plan = ledger.commit(spending(times=3))
    for round in (1, 2, 3):
        assert plan.spent() == pytest.approx(epsilon([counts(10.0, round - 1)] if round > 1 else [], delta=1e-5, adjacency="add-remove"))
        send(plan, round)
    with pytest.raises(FedethosError, match="PRIV-315"):
        plan.reserve("train", 4)
    with pytest.raises(FedethosError, match="PRIV-315"):
        plan.reserve("counts/test", 1)


def test_repeated_round_gets_the_stored_bytes_and_is_not_charged(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger)
        send(ledger.commit(spending()), 1, b"the very bytes")
    with Ledger(path) as ledger:
        plan = ledger.commit(spending())
        before = plan.spent()
        assert plan.stored_reply("train", 1) == b"the very bytes"
        assert plan.stored_reply("train", 2) is None
        assert not plan.lost("train", 1) and not plan.lost("train", 2)
        assert plan.spent() == before
        known = ledger.accounts["patients"].find(JOB, "r1")
        assert known and [one.sha256 for one in known.reservations.values()] == [hashlib.sha256(b"the very bytes").hexdigest()]


def test_only_the_last_two_replies_are_kept(ledger: Ledger) -> None:
    plan = ledger.commit(spending())
    for round in (1, 2, 3):
        send(plan, round, f"reply {round}".encode())
    assert [plan.stored_reply("train", round) for round in (1, 2, 3)] == [None, b"reply 2", b"reply 3"]
    assert plan.lost("train", 1)


def test_lost_round_is_paid_and_the_rest_is_planned_anew_inside_the_budget(path: Path) -> None:
    budget = epsilon([counts(4.0, 5)], delta=1e-5, adjacency="add-remove")
    with Ledger(path) as ledger:
        open_account(ledger)
        plan = ledger.commit(spending(sigma=4.0, times=5, budget=budget))
        send(plan, 1)
        plan.reserve("train", 2)  # killed here
    with Ledger(path) as ledger:
        plan = ledger.commit(spending(sigma=4.0, times=5, budget=budget))
        charged = ledger.accounts["patients"].plans
        before = [state.charge for state in charged.values()]
        assert plan.lost("train", 2)
        event = plan.replan("train", 4)
        assert isinstance(event, CountRelease)
        assert 4.0 < event.sigma < 6.0
        for round in (2, 3, 4, 5):
            assert plan.event("train") == event
            send(plan, round)
        total = epsilon([counts(4.0, 2), counts(event.sigma, 4)], delta=1e-5, adjacency="add-remove")
        assert budget - 0.02 < total <= budget
        assert plan.spent() == pytest.approx(total)
        for state, old in zip(charged.values(), before, strict=True):
            assert (state.charge.lifetime, state.charge.job, state.charge.epsilon) >= (old.lifetime, old.job, old.epsilon)


def test_other_purposes_keep_their_noise_when_one_is_planned_anew(ledger: Ledger) -> None:
    both = dataclasses.replace(spending(), allotments=(counts(10.0, 2), counts(6.0, 1, "counts/train")))
    budget = epsilon(both.allotments, delta=1e-5, adjacency="add-remove")
    plan = ledger.commit(dataclasses.replace(both, epsilon=budget))
    plan.reserve("train", 1)
    event = plan.replan("train", 2)
    assert plan.event("counts/train") == both.allotments[1].event
    total = [counts(10.0, 1), Allotment(purpose="train", event=event, times=2), both.allotments[1]]
    assert budget - 0.02 < epsilon(total, delta=1e-5, adjacency="add-remove") <= budget


def test_nothing_left_to_plan_with_is_refused(ledger: Ledger) -> None:
    budget = epsilon([counts(4.0, 1)], delta=1e-5, adjacency="add-remove")
    plan = ledger.commit(spending(sigma=4.0, times=1, budget=budget))
    plan.reserve("train", 1)
    with pytest.raises(FedethosError, match="PRIV-306"):
        plan.replan("train", 1)
    with pytest.raises(FedethosError, match="PRIV-315"):
        plan.replan("counts/test", 1)


def test_stopping_early_refunds_nothing(ledger: Ledger) -> None:
    plan = ledger.commit(spending(sigma=4.0, times=5))
    before = ledger.accounts["patients"].epsilon, ledger.accounts["patients"].epsilon_left
    send(plan, 1)
    plan.replan("train", 1)
    assert (ledger.accounts["patients"].epsilon, ledger.accounts["patients"].epsilon_left) == before


def test_seeded_replay_is_not_charged_twice(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger, simulated=True)
        first = ledger.commit(spending(seeded=True)).reserve("train", 1).number
    with Ledger(path) as ledger:
        plan = ledger.commit(spending(seeded=True))
        spent = plan.spent()
        assert not plan.lost("train", 1)
        assert send(plan, 1) == first
        assert plan.spent() == spent
        assert ledger.accounts["patients"].opened.simulated


# --- receipts ---


def test_receipt_pays_for_one_release(ledger: Ledger) -> None:
    plan = ledger.commit(spending())
    receipt = plan.reserve("train", 1)
    release = receipt.release([1, 2], event=receipt.event)
    assert (release.value, release.purpose, release.round, release.event) == ([1, 2], "train", 1, plan.event("train"))
    with pytest.raises(FedethosError, match="PRIV-317"):
        receipt.release([3], event=receipt.event)
    plan.record(release, b"reply")
    for again in (lambda: plan.record(release, b"another"), lambda: receipt.release([3], event=receipt.event)):
        with pytest.raises(FedethosError, match="PRIV-317"):
            again()


def test_receipt_pays_for_the_mechanism_it_was_reserved_for(ledger: Ledger) -> None:
    receipt = ledger.commit(spending()).reserve("train", 1)
    for other in (receipt.event.with_noise(0.5), CountRelease(sigma=10.0, rows=1, tables=2, population="train")):
        with pytest.raises(FedethosError, match="PRIV-317"):
            receipt.release("value", event=other)
    receipt.release("value", event=receipt.event)


def test_no_release_without_a_receipt_and_no_receipt_without_the_ledger(ledger: Ledger) -> None:
    plan = ledger.commit(spending())
    receipt = plan.reserve("train", 1)
    for forge in (
        lambda: Receipt(object(), plan, receipt._reservation),
        lambda: Release(object(), receipt, "value"),
        lambda: copy.copy(receipt),
        lambda: copy.deepcopy(receipt),
        lambda: pickle.dumps(receipt),
        lambda: copy.copy(receipt.release("value", event=receipt.event)),
    ):
        with pytest.raises(FedethosError, match="PRIV-317"):
            forge()


def test_look_alikes_are_not_taken(ledger: Ledger) -> None:
    plan, other = ledger.commit(spending()), ledger.commit(spending("r2"))
    receipt = plan.reserve("train", 1)
    twin = Receipt.__new__(Receipt)
    twin._plan, twin._reservation = plan, receipt._reservation
    with pytest.raises(FedethosError, match="PRIV-317"):
        twin.release("value", event=receipt.event)
    release = receipt.release("value", event=receipt.event)
    fake: Release[object] = Release.__new__(Release)
    fake._receipt, fake._value = receipt, "another value"
    for plan_asked, given in ((plan, fake), (other, release)):
        with pytest.raises(FedethosError, match="PRIV-317"):
            plan_asked.record(given, b"reply")


def test_receipt_and_ledger_stay_in_their_process(ledger: Ledger) -> None:
    plan = ledger.commit(spending())
    receipt = plan.reserve("train", 1)
    fork = multiprocessing.get_context("fork")
    answers = fork.SimpleQueue()

    def child() -> None:
        for attempt in (
            lambda: receipt.release("value", event=receipt.event),
            lambda: plan.reserve("train", 2),
            lambda: open_account(ledger),
        ):
            try:
                attempt()
                answers.put("done")
            except FedethosError as refusal:
                answers.put(refusal.code)

    process = fork.Process(target=child)
    process.start()
    process.join()
    assert [answers.get() for _ in range(3)] == ["PRIV-317", "PRIV-307", "PRIV-307"]
    receipt.release("value", event=receipt.event)


def test_reserving_needs_neither_torch_nor_an_accountant(path: Path) -> None:
    with Ledger(path) as ledger:
        open_account(ledger)
        ledger.commit(spending())
    script = """
import dataclasses, sys
from pathlib import Path
from fedethos.privacy.ledger import Ledger, quote, read_ledger
with Ledger(Path(sys.argv[1])) as ledger:
    [state] = ledger.accounts["patients"].plans.values()
    plan = ledger.commit(state.plan)
    receipt = plan.reserve("train", 1)
    plan.record(receipt.release(1, event=receipt.event), b"reply")
print(sorted({"torch", "dp_accounting", "flwr", "transformers"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
