"""Caps and ledgers of virtual sites: a refusal comes before anything is computed, and trials on one ledger add up."""

import json
from contextlib import ExitStack
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant
from typer.testing import CliRunner

from fedethos.caps import Caps, VirtualSite
from fedethos.cli import run
from fedethos.cli_privacy import privacy_app
from fedethos.client import text_classification
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.privacy.composition import as_dp_event
from fedethos.privacy.ledger import read_ledger
from fedethos.privacy.planner import allotments
from fedethos.privacy.renyi import epsilon_of_trials
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.accounts import committed_plans
from fedethos.simulations.engine import resume, simulate

DECLARED = {"sites": {name: {"declared_size": 200} for name in ("a", "b", "c")}}
SHARED = {"ledger": "trials.sqlite", "caps": {"lifetime_epsilon": 6.0, "per_job_epsilon": 6.0}}


class TouchedError(Exception):
    """Raised in place of what may not happen."""


def start(job_file: Path, out: Path, *overrides: str, observer: Silent | None = None, force: bool = False) -> Path:
    return simulate(load_job(job_file, overrides), out, base=job_file.parent, observer=observer or Silent(), force=force)


def with_caps(epsilon: float) -> tuple[str, ...]:
    return tuple(f"simulation.site.caps.{name}={epsilon}" for name in ("lifetime_epsilon", "per_job_epsilon"))


@pytest.fixture
def no_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No record can become an input of the model, so nothing can be cached or trained either."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise TouchedError

    monkeypatch.setattr(text_classification, "tokenize", refuse)
    monkeypatch.setattr(text_classification.prefix, "build_cache", refuse)


def test_over_the_cap_nothing_is_tokenised_cached_or_trained(write_job, tmp_path: Path, no_inputs: None) -> None:
    with pytest.raises(FedethosError, match="PRIV-310"):
        start(write_job(), tmp_path / "run", *with_caps(2))
    with pytest.raises(TouchedError):  # the same job within its caps gets as far as the inputs
        start(write_job(), tmp_path / "run", *with_caps(8))


def test_with_declared_sizes_the_records_are_not_even_opened(write_job, tmp_path: Path) -> None:
    job_file = write_job(federation=DECLARED, data={"path": str(tmp_path / "nobody.csv")})
    with pytest.raises(FedethosError, match="PRIV-310"):
        start(job_file, tmp_path / "run", *with_caps(2))
    with pytest.raises(FedethosError, match="DATA-"):
        start(job_file, tmp_path / "run", *with_caps(8))


def test_a_wrong_number_of_sites_is_refused_before_anything_is_charged(write_job, tmp_path: Path) -> None:
    job_file = write_job(federation=DECLARED, simulation={"sites": 4, "site": SHARED})
    with pytest.raises(FedethosError, match="CFG-230"):
        start(job_file, tmp_path / "run")
    assert not (tmp_path / "trials.sqlite").exists()


def test_too_many_rounds_for_a_site_are_refused(write_job, tmp_path: Path, no_inputs: None) -> None:
    with pytest.raises(FedethosError, match="PRIV-311"):
        start(write_job(), tmp_path / "run", *with_caps(8), "simulation.site.caps.rounds=2")


def test_the_command_refuses_cleanly_and_leaves_no_run(write_job, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    caps = [part for one in with_caps(2) for part in ("--set", one)]
    assert run(["simulate", str(write_job()), "--out", str(tmp_path / "run"), *caps]) == 4
    printed = capsys.readouterr().err
    assert "PRIV-310" in printed and "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_trials_on_one_ledger_compose_until_the_lifetime_cap(write_job, tmp_path: Path) -> None:
    job_file = write_job(privacy={"epsilon": 3.0}, federation={"rounds": 1}, simulation={"site": SHARED})
    for trial, rate in enumerate((0.01, 0.02), start=1):
        start(job_file, tmp_path / f"trial-{trial}", f"training.learning_rate={rate}", f"name=trial-{trial}")
        assert not RunFolder(tmp_path / f"trial-{trial}").ledger.exists()
        assert any("privacy spent" in mark for mark in RunFolder(tmp_path / f"trial-{trial}").read_manifest().marks)
    before, _ = read_ledger(tmp_path / "trials.sqlite")
    account = before.accounts["site-1"]
    assert len(account.plans) == 2

    accountant = RdpAccountant([account.opened.lifetime_order], dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for plan in account.plans.values():  # the training people bear most
        steps = [one for one in plan.total if one.event.population == "train"]
        accountant.compose(dp_accounting.ComposedDpEvent([dp_accounting.SelfComposedDpEvent(as_dp_event(o.event), o.times) for o in steps]))
    assert account.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert account.epsilon > 3.5  # two runs of 3 each cost more than one

    told = json.loads(CliRunner().invoke(privacy_app, ["spent", str(tmp_path / "trial-1"), "--json"]).stdout)
    assert [(one["plans"], one["epsilon"]) for one in told["accounts"]] == [(2, one.epsilon) for _, one in sorted(before.accounts.items())]

    with pytest.raises(FedethosError, match=r"PRIV-310 This site has .* of its lifetime budget left"):
        start(job_file, tmp_path / "trial-3", "name=trial-3")
    after, _ = read_ledger(tmp_path / "trials.sqlite")
    assert {len(one.plans) for one in after.accounts.values()} == {2}  # the refused trial was charged to nobody
    assert all(one.epsilon <= 6.0 for one in after.accounts.values())
    assert not RunFolder(tmp_path / "trial-3").holds_run()


def test_a_trial_that_one_site_refuses_is_charged_to_no_site(write_job, tmp_path: Path) -> None:
    job = load_job(write_job(privacy={"epsilon": 3.0}, federation={"rounds": 1}))
    sizes = {"a": 100, "b": 300}  # the same epsilon within a plan, but not the same Rényi cost
    needs = {
        name: epsilon_of_trials(allotments(job, declared_size=size), 2, delta=1e-5, adjacency="add-remove") for name, size in sizes.items()
    }
    assert needs["a"] < needs["b"] - 0.1
    site = VirtualSite(caps=Caps(lifetime_epsilon=needs["b"] - 0.05, per_job_epsilon=needs["b"] - 0.05))
    job = job.model_copy(update={"simulation": job.simulation.model_copy(update={"site": site})})
    with ExitStack() as open_ledgers:
        committed_plans(job, sizes, tmp_path / "trials.sqlite", "first", open_ledgers)
        with pytest.raises(FedethosError, match="PRIV-310"):
            committed_plans(job, sizes, tmp_path / "trials.sqlite", "second", open_ledgers)
    state, _ = read_ledger(tmp_path / "trials.sqlite")
    assert {name: len(account.plans) for name, account in state.accounts.items()} == {"a": 1, "b": 1}


def test_a_resumed_run_is_charged_once_and_a_repeated_one_again(write_job, tmp_path: Path) -> None:
    job_file = write_job(privacy={"epsilon": 2.0}, federation={"rounds": 2}, simulation={"site": SHARED})

    class Interrupt(Silent):
        def round_started(self, round: int, rounds: int, sites: object) -> None:
            if round == 2:
                raise KeyboardInterrupt

    def plans() -> set[int]:
        state, _ = read_ledger(tmp_path / "trials.sqlite")
        return {len(account.plans) for account in state.accounts.values()}

    with pytest.raises(KeyboardInterrupt):
        start(job_file, tmp_path / "run", observer=Interrupt())
    resume(tmp_path / "run", observer=Silent())
    assert plans() == {1}
    start(job_file, tmp_path / "run", force=True)
    assert plans() == {2}


def test_other_people_under_the_same_name_are_refused(write_job, tmp_path: Path) -> None:
    job_file = write_job(privacy={"epsilon": 2.0}, federation={"rounds": 1}, simulation={"site": SHARED})
    start(job_file, tmp_path / "one")
    with pytest.raises(FedethosError, match="PRIV-355"):
        start(job_file, tmp_path / "two", "simulation.seed=4")
    with pytest.raises(FedethosError, match="PRIV-314"):
        start(job_file, tmp_path / "two", "simulation.site.caps.lifetime_epsilon=50")


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("simulation.site.ledger=trials.sqlite", "CFG-260"),
        ("simulation.site={caps: {lifetime_epsilon: 1, per_job_epsilon: 2}}", "CFG-225"),
        ("simulation.site.account=ward", "CFG-201"),
    ],
)
def test_keys_that_mean_nothing_are_refused(write_job, override: str, code: str) -> None:
    with pytest.raises(FedethosError, match=code):
        load_job(write_job(), [override])


def test_caps_without_privacy_are_refused(write_job) -> None:
    with pytest.raises(FedethosError, match="CFG-261"):
        load_job(write_job(privacy={"mode": "none", "epsilon": None}), with_caps(8))
