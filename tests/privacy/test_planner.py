"""Plans against the accountant they must satisfy, and the command that prints them."""

import dataclasses
import json
import re

import pytest
import typer
from typer.testing import CliRunner

from fedethos.cli_plan import plan
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.accounting import epsilon_after
from fedethos.privacy.composition import epsilon
from fedethos.privacy.planner import allotments, check_fits, cost_of_noise, noise_for_budget, rounds_for_noise

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
    assert 1.01 < factor < 1.10  # a tenth of 1 / noise^2 is about 5 % of the noise


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


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), "CFG-231"),
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
