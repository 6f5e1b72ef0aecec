"""Plans against the accountant they must satisfy, and the command that prints them."""

import dataclasses
import json
import math
import re

import pytest
import typer
import yaml
from typer.testing import CliRunner

from fedethos.caps import Caps
from fedethos.cli_plan import plan
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.accounting import epsilon_after
from fedethos.privacy.composition import epsilon
from fedethos.privacy.events import Allotment, CountRelease, GaussianSum
from fedethos.privacy.ledger import Ledger
from fedethos.privacy.ledger_entries import SpendingPlan
from fedethos.privacy.planner import allotments, check_fits, cost_of_noise, noise_for_budget, rounds_for_noise, training_noise_beside

SIZE = 1500
JOB = """
schema: fedethos/job/v1
name: plan
model: {path: "asset:minilm"}
data:
  path: "builtin:adult"
  text: "{age}"
  label: {column: y, values: [a, b], favorable: b}
  sensitive: {sex: [Female, Male], race: [White, Black, Other]}
  split: {train: 0.6, validation: 0.1, test: 0.3}
federation: {rounds: 6}
"""


def job(**privacy):
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "plan",
            "model": {"path": "asset:minilm"},
            "data": {
                "path": "builtin:adult",
                "text": "{age}",
                "label": {"column": "y", "values": ["a", "b"], "favorable": "b"},
                "sensitive": {"sex": ["Female", "Male"]},
            },
            "federation": {"rounds": 6},
            "privacy": privacy,
        }
    )


def with_rounds(planned, rounds):
    return planned.model_copy(update={"federation": planned.federation.model_copy(update={"rounds": rounds})})


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
@pytest.mark.parametrize("target", [8.0, 1.0])
def test_everything_a_site_releases_fits_its_budget_and_uses_it(adjacency, target):
    planned = job(adjacency=adjacency, epsilon=target)
    paid = allotments(planned, declared_size=SIZE)
    assert [one.purpose for one in paid] == ["train", "groups+scores/test", "scores/validation"]
    assert [one.times for one in paid] == [6, 1, 1]
    assert 0.98 * target < epsilon(paid, delta=1e-5, adjacency=adjacency) <= target


def test_under_replace_one_counts_cost_training_a_little_noise():
    alone = noise_for_budget(job(), declared_size=SIZE).noise_multiplier
    together = allotments(job(adjacency="replace-one"), declared_size=SIZE)
    assert together[0].event.noise_multiplier > alone
    assert epsilon(together[:1], delta=1e-5, adjacency="replace-one") > 0.9 * 8.0


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_loss_sums_and_counts_on_training_people_are_paid_together_with_training(adjacency):
    planned = job(adjacency=adjacency, epsilon=4.0)
    beside = (
        Allotment(purpose="losses/train", event=GaussianSum(noise_multiplier=12.0, population="train"), times=6),
        Allotment(purpose="groups/train", event=CountRelease(sigma=9.0, rows=1, tables=2, population="train"), times=1),
    )
    paid = allotments(planned, declared_size=SIZE, beside=beside)
    assert set(beside) < set(paid)
    assert 0.98 * 4.0 < epsilon(paid, delta=1e-5, adjacency=adjacency) <= 4.0
    training = next(one for one in paid if one.purpose == "train")
    without = next(one for one in allotments(planned, declared_size=SIZE) if one.purpose == "train")
    assert training.event.noise_multiplier > without.event.noise_multiplier
    apart = [epsilon([one], delta=1e-5, adjacency=adjacency) for one in (training, *beside)]
    assert sum(apart) > 4.3  # adding up epsilons would have bought less


def test_nothing_fits_beside_what_costs_the_whole_budget():
    losses = Allotment(purpose="losses/train", event=GaussianSum(noise_multiplier=0.3, population="train"), times=1)
    with pytest.raises(FedethosError, match="PRIV-302"):
        training_noise_beside(job(epsilon=1.0), declared_size=SIZE, others=[losses])


POLICY = {"allow_group_thresholds": True, "reason": "a test"}


@pytest.mark.parametrize(("adjacency", "target"), [("add-remove", 8.0), ("add-remove", 1.0), ("replace-one", 8.0)])
def test_counts_of_training_people_are_paid_within_the_budget_of_training(adjacency, target):
    without = job(adjacency=adjacency, epsilon=target)
    attribute = next(iter(without.data.sensitive))
    by_group = Job.model_validate(
        without.model_dump(by_alias=True) | {"fairness": {"thresholds": "equal_opportunity", "attribute": attribute}, "policy": POLICY}
    )
    paid = allotments(by_group, declared_size=SIZE)
    assert [one.purpose for one in paid if one.event.population == "train"] == ["train", "group-scores/train"]
    assert 0.98 * target < epsilon(paid, delta=1e-5, adjacency=adjacency) <= target
    factor = paid[0].event.noise_multiplier / allotments(without, declared_size=SIZE)[0].event.noise_multiplier
    if adjacency == "add-remove":
        assert 1.01 < factor < 1.10  # 1 / noise^2 of three tenths of epsilon is about a tenth of the whole
    else:
        assert 0.99 < factor < 1.01  # all counts share what counts have there


def test_nothing_is_planned_without_privacy():
    without = job(mode="none", epsilon=None)
    assert allotments(without, declared_size=SIZE) == ()
    with pytest.raises(FedethosError, match="PRIV-332"):
        noise_for_budget(without, declared_size=SIZE)
    with pytest.raises(FedethosError, match="PRIV-332"):
        rounds_for_noise(without, declared_size=SIZE, noise_multiplier=1.0)


def test_cost_of_a_noise_is_the_accountants():
    cost = cost_of_noise(job(), declared_size=SIZE, noise_multiplier=1.0)
    assert cost.sampling_rate == pytest.approx(64 / SIZE)
    assert cost.epsilon == pytest.approx(epsilon_after(noise_multiplier=1.0, sampling_rate=64 / SIZE, steps=120, delta=1e-5), abs=1e-6)


@pytest.mark.parametrize("noise", [0.8, 1.2])
def test_rounds_for_a_noise_are_the_most_that_fit(noise):
    planned = job(epsilon=4.0)
    rounds = rounds_for_noise(planned, declared_size=SIZE, noise_multiplier=noise)
    costs = [cost_of_noise(with_rounds(planned, n), declared_size=SIZE, noise_multiplier=noise).epsilon for n in (rounds, rounds + 1)]
    assert costs[0] <= 4.0 < costs[1]


def test_no_round_fits_a_noise_that_is_too_small():
    assert rounds_for_noise(job(epsilon=0.5), declared_size=SIZE, noise_multiplier=0.6) == 0


def test_a_plan_that_does_not_fit_names_options_that_do():
    planned = with_rounds(job(epsilon=4.0), 12)
    with pytest.raises(FedethosError, match="PRIV-301") as refused:
        check_fits(planned, declared_size=SIZE, noise_multiplier=0.9)
    told = re.fullmatch(r"Options that fit: (\d+) rounds, or batch (\d+), or noise (\d+\.\d+) instead of 0\.9\. .*", refused.value.fix)
    rounds, batch, noise = int(told[1]), int(told[2]), float(told[3])
    smaller = planned.model_copy(update={"training": planned.training.model_copy(update={"batch_size": batch})})
    assert check_fits(with_rounds(planned, rounds), declared_size=SIZE, noise_multiplier=0.9).epsilon <= 4.0
    assert check_fits(smaller, declared_size=SIZE, noise_multiplier=0.9).epsilon <= 4.0
    assert check_fits(planned, declared_size=SIZE, noise_multiplier=noise).epsilon <= 4.0
    assert f"{cost_of_noise(planned, declared_size=SIZE, noise_multiplier=0.9).epsilon:.1f}; the limit is 4" in refused.value.what


@pytest.fixture
def command(tmp_path):
    (tmp_path / "job.yaml").write_text(JOB)
    app = typer.Typer()
    app.command()(plan)

    def call(*arguments):
        result = CliRunner().invoke(app, [str(tmp_path / "job.yaml"), *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    return call


def test_the_command_prints_costs_precision_and_what_to_do_next(command):
    lines = command("--size", "1500").splitlines()
    assert any(line.startswith("training     5 sites of 1,500 records: noise 0.678") for line in lines)
    assert any("sex   demographic-parity difference" in line and " measurable while the smallest group" in line for line in lines)
    assert any("race  equal-opportunity difference" in line for line in lines)
    assert lines[-1].startswith("Next: fedethos simulate ")


def test_the_command_as_json(command):
    told = json.loads(command("--size", "1500", "--shares", "sex=1,3", "--favorable-share", "0.2", "--json"))
    assert told["test_people"] == 5 * 1500 // 2
    assert told["sites"]["site-5"] == dataclasses.asdict(noise_for_budget(job(), declared_size=1500))
    assert {one["purpose"]: one["times"] for one in told["counts"]} == {"groups+scores/test": 1, "scores/validation": 1}
    assert [(one["attribute"], one["metric"]) for one in told["metrics"][:2]] == [
        ("sex", "demographic_parity_difference"),
        ("sex", "equal_opportunity_difference"),
    ]
    assert all(one["measurable"] == (one["half_width"] <= 0.1) for one in told["metrics"])


def test_less_epsilon_measures_less(command):
    def widths(*arguments):
        return [one["half_width"] for one in json.loads(command("--size", "1500", "--json", *arguments))["metrics"]]

    assert all(tight > wide for tight, wide in zip(widths("--set", "privacy.epsilon=0.5"), widths(), strict=True))
    without = widths("--set", "privacy.mode=none", "--set", "privacy.epsilon=null")
    assert all(exact < noisy for exact, noisy in zip(without, widths(), strict=True))


def test_the_test_share_that_a_precision_takes_is_enough(command):
    told = json.loads(command("--size", "1500", "--precision", "0.06", "--json"))
    one = next(one for one in told["metrics"] if one["metric"] == "equal_opportunity_difference" and one["attribute"] == "sex")
    assert not one["measurable"]
    test = one["test_share"]
    people = 1500 / 0.6  # the same people, split otherwise
    split = f"data.split={{train: {0.9 - test}, validation: 0.1, test: {test}}}"
    again = json.loads(command("--size", str(round(people * (0.9 - test))), "--precision", "0.0605", "--set", split, "--json"))
    assert next(o for o in again["metrics"] if (o["attribute"], o["metric"]) == ("sex", "equal_opportunity_difference"))["measurable"]


def test_rounds_are_found_for_a_given_noise(command):
    told = json.loads(command("--size", "1500", "--noise-multiplier", "0.8", "--json"))
    assert told["rounds"] > 6
    assert told["sites"]["site-1"]["epsilon"] <= 8.0


SCENARIO = "scenarios=[{name: older, filter: {age: ['>=65']}, metric: error_rate, limit: 0.2}]"


def test_the_command_says_how_precisely_scenarios_will_be_known(command, tmp_path):
    told = json.loads(command("--size", "1500", "--set", SCENARIO, "--shares", "scenario:older=1,3", "--json"))
    (one,) = told["scenarios"]
    assert (one["scenario"], one["metric"], one["matching"]) == ("older", "error_rate", 0.25)
    people = told["test_people"] * 0.25
    noise = 5 * 2 * sum(one["event"]["sigma"] ** 2 for one in told["counts"] if one["event"]["population"] == "test")
    assert one["half_width"] == pytest.approx(1.96 * math.sqrt(0.25 / people + noise / 2 / people**2), rel=0.03)  # at a rate of one half
    lines = command("--size", "1500", "--set", SCENARIO).splitlines()
    assert any(
        re.fullmatch(r"  older  error rate +±0\.0\d\d  if 10% match: measurable, while \d% do; it takes a test split of 0\.\d+", line)
        for line in lines
    )
    assert json.loads(command("--size", "1500", "--json"))["scenarios"] == []
    file = tmp_path / "older.yaml"
    file.write_text("{schema: fedethos/scenario/v1, name: older, filter: {age: ['>=65']}, metric: error_rate, limit: 0.2}")
    *same, following = command("--size", "1500", "--scenario", str(file)).splitlines()
    assert same == lines[:-1]
    assert f"--scenario {file}" in following


def test_where_every_record_has_its_own_answer_there_is_one_gap(command):
    own = "{path: 'builtin:adult', text: '{age}', response: '{income}', sensitive: {sex: [Female, Male]}}"
    language = ["task=causal-lm", f"data={own}", "fairness={thresholds: fixed}"]
    shown = command("--size", "1500", *(part for change in language for part in ("--set", change)))
    assert "difference in accuracy" in shown
    assert "favorable" not in shown and "equal-opportunity" not in shown


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "CFG-231"),
        (("--size", "1500", "--set", SCENARIO, "--shares", "older=0.1,0.9"), "CFG-232"),
        (("--size", "1500", "--shares", "sex=1"), "CFG-232"),
        (("--size", "1500", "--shares", "age=1,2"), "CFG-232"),
        (("--size", "1500", "--shares", "sex=a,b"), "CFG-232"),
        (("--size", "1500", "--shares", "sex=0,1"), "CFG-232"),
        (("--size", "1500", "--rounds", "30", "--noise-multiplier", "0.7"), "PRIV-301"),
        (("--size", "1500", "--noise-multiplier", "0.3", "--set", "privacy.epsilon=1"), "PRIV-301"),
    ],
)
def test_the_command_refuses(command, arguments, code):
    with pytest.raises(FedethosError) as refused:
        command(*arguments)
    assert refused.value.code == code


@pytest.mark.parametrize("adjacency", ["add-remove", "replace-one"])
def test_as_many_trials_fit_a_ledger_as_the_command_says(command, tmp_path, adjacency):
    """The ledger is the judge: under the printed cap it takes three plans and no fourth, and a cap of 0.02 less takes only two."""
    change = ("--set", f"privacy.adjacency={adjacency}")
    told = json.loads(command("--size", "1500", "--trials", "3", "--json", *change))["trials"]
    assert told["runs"] == 3
    (cap,) = set(told["epsilon"].values())
    planned = Job.model_validate(yaml.safe_load(JOB))
    planned = planned.model_copy(update={"privacy": planned.privacy.model_copy(update={"adjacency": adjacency})})
    paid = allotments(planned, declared_size=1500)
    for lifetime, fit in ((cap, 3), (cap - 0.02, 2)):
        with Ledger(tmp_path / f"{fit}.sqlite") as ledger:
            ledger.open_account(
                "a", caps=Caps(lifetime_epsilon=lifetime, per_job_epsilon=lifetime), unit="record", adjacency=adjacency, simulated=True
            )
            for trial in range(fit + 1):
                plan = SpendingPlan(
                    account="a",
                    job_sha256=str(trial) * 64,
                    run="r",
                    unit="record",
                    adjacency=adjacency,
                    epsilon=8.0,
                    delta=1e-5,
                    allotments=paid,
                )
                if trial < fit:
                    ledger.commit(plan)
                else:
                    with pytest.raises(FedethosError, match="PRIV-310"):
                        ledger.commit(plan)


def test_the_command_prints_trials_beside_a_single_run(command):
    line = next(line for line in command("--size", "1500", "--trials", "3").splitlines() if line.startswith("trials"))
    assert "3 runs on the same people" in line and re.search(r"epsilon 18\.\d\d \(one fixed run 7\.99\)", line)
    assert json.loads(command("--size", "1500", "--json"))["trials"] is None


def test_the_command_compares_accountants(command):
    told = json.loads(command("--size", "1500", "--accountants", "--json"))
    by_name = told["accountants"]["site-1"]
    assert by_name["PLD"] == told["sites"]["site-1"]["epsilon"]  # counts of other people cost training nothing
    assert by_name["PRV"] == pytest.approx(by_name["PLD"], abs=0.02)
    assert by_name["RDP"] > by_name["PLD"] + 0.5
    assert json.loads(command("--size", "1500", "--json"))["accountants"] is None


def test_the_prv_accountant_is_not_asked_about_what_it_does_not_know(command):
    line = next(
        line for line in command("--size", "1500", "--accountants", "--set", "privacy.adjacency=replace-one").splitlines() if "PLD" in line
    )
    assert re.fullmatch(r"accountants  training alone at a site of 1,500: PLD \d\.\d\d, RDP \d\.\d\d \(PLD is charged\)", line)
