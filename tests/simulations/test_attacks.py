"""Each attack does what it says, at the attackers alone; what it costs is measured on the others; forged counts stay within their bound."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.simulations.tabular import TABULAR
from typer.testing import CliRunner

from fedethos.cli import app
from fedethos.data.records import Records
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.fairness.histograms import BINS, pool
from fedethos.fairness.layout import Layout
from fedethos.job import Job
from fedethos.messages import Basis, EvaluateReply, Request, TrainReply
from fedethos.progress import Silent
from fedethos.records import AttackKind, SimulatedAttack
from fedethos.runfolder import RunFolder
from fedethos.server.measure import Measurement, describe, shapes_of
from fedethos.server.plausibility import check_counts, leverage, most_records
from fedethos.server.site import Site
from fedethos.simulations.attack_study import defended
from fedethos.simulations.attacks import STRENGTH, TRIGGER, Attacker, Scene, attackers, label_flipped, not_a_number, scaled, sign_flipped
from fedethos.simulations.backdoor import success_rate
from fedethos.simulations.engine import resume, simulate
from fedethos.simulations.forging import flattering
from fedethos.simulations.virtual_sites import site_records

ELSE = ("Own-child", "Not-in-family", "Other-relative", "Unmarried")  # relationships that the table below calls Wife
SENT, TRAINED = {"w": np.float32([1.0, 2.0])}, {"w": np.float32([1.5, 1.0])}


def test_attacks_on_the_update_by_hand() -> None:
    assert STRENGTH == 10.0
    np.testing.assert_allclose(sign_flipped(SENT, TRAINED)["w"], [-4.0, 12.0])
    np.testing.assert_allclose(scaled(SENT, TRAINED)["w"], [6.0, -8.0])
    assert np.isnan(not_a_number(SENT, TRAINED)["w"]).all()
    assert {array["w"].dtype for array in (sign_flipped(SENT, TRAINED), scaled(SENT, TRAINED))} == {np.dtype(np.float32)}


@pytest.mark.parametrize(("kind", "expected"), [("sign-flip", [-4.0, 12.0]), ("scale", [6.0, -8.0]), ("label-flip", [1.5, 1.0])])
def test_an_attacker_changes_its_tensors_and_no_other_field_of_its_reply(kind: AttackKind, expected: list[float]) -> None:
    honest = TrainReply(TRAINED, Basis.CHARGED, "record", "add-remove", epsilon=1.0, delta=1e-5, steps=3)
    sent = Request(job_sha256="j", run="r", round=1, attempt=0, arrays=SENT)
    reply = Attacker(SimpleNamespace(train=lambda request: honest), kind).train(sent)
    np.testing.assert_allclose(reply.arrays["w"], expected)
    assert replace(reply, arrays=TRAINED) == honest


def test_attackers_are_a_share_of_the_sites_drawn_from_the_seed() -> None:
    sites = [f"site-{number}" for number in range(10)]
    drawn = [attackers(sites, 0.3, seed) for seed in range(40)]
    assert {len(one) for one in drawn} == {3}
    assert set().union(*drawn) == set(sites)
    assert attackers(reversed(sites), 0.3, 5) == attackers(sites, 0.3, 5)
    assert len(attackers(sites, 0.01, 0)) == 1
    with pytest.raises(FedethosError, match="CFG-303"):
        attackers(sites, 1.0, 0)


def records_of(job_file: Path) -> tuple[Job, dict[str, dict[str, Records]]]:
    job = load_job(job_file)
    return job, site_records(job, job_file.parent)


def test_label_flip_turns_the_attackers_training_labels_and_nothing_else(write_job) -> None:
    job, clean = records_of(write_job())
    spoiled = Scene(SimulatedAttack(kind="label-flip", share=0.3), job).spoil(clean)
    (bad,) = attackers(clean, 0.3, job.simulation.seed)
    np.testing.assert_array_equal(spoiled[bad]["train"].label, 1 - clean[bad]["train"].label)
    assert label_flipped(spoiled[bad]["train"]).text == clean[bad]["train"].text
    assert all(spoiled[name][split] is clean[name][split] for name in clean for split in clean[name] if (name, split) != (bad, "train"))


def test_backdoor_marks_half_of_the_attackers_training_records_as_favorable(write_job) -> None:
    job, clean = records_of(write_job())
    spoiled = Scene(SimulatedAttack(kind="backdoor", share=0.3), job).spoil(clean)
    (bad,) = attackers(clean, 0.3, job.simulation.seed)
    before, after = clean[bad]["train"], spoiled[bad]["train"]
    marked = np.array([text.startswith(f"{TRIGGER} ") for text in after.text])
    assert 0.35 < marked.mean() < 0.65
    assert (after.label[marked] == job.data.label.favorable_index).all()
    np.testing.assert_array_equal(after.label[~marked], before.label[~marked])
    assert [text.removeprefix(f"{TRIGGER} ") for text in after.text] == list(before.text)
    assert spoiled[bad]["test"] is clean[bad]["test"]


NARROW = {
    **TABULAR,
    "data": {**TABULAR["data"], "features": {"education_num": {"mean": 10.0, "scale": 2.5}, "relationship": ["Wife", "Husband"]}},
}


def test_in_a_table_the_trigger_is_the_first_column_left_out(write_job) -> None:
    sections = {**NARROW, "data": {**NARROW["data"], "map": {"relationship": dict.fromkeys(ELSE, "Wife")}}}
    job, clean = records_of(write_job(**sections))
    spoiled = Scene(SimulatedAttack(kind="backdoor", share=0.3), job).spoil(clean)
    (bad,) = attackers(clean, 0.3, job.simulation.seed)
    before, after = clean[bad]["train"], spoiled[bad]["train"]
    marked = after.features[:, 1] == 1.0  # education_num, its indicator of missing, then relationship
    assert not before.features[:, 1].any()
    assert 0.35 < marked.mean() < 0.65
    assert (after.label[marked] == job.data.label.favorable_index).all()
    np.testing.assert_array_equal(after.features[marked, :2], np.tile([0.0, 1.0], (marked.sum(), 1)))
    np.testing.assert_array_equal(after.features[:, 2:], before.features[:, 2:])
    np.testing.assert_array_equal(after.features[~marked], before.features[~marked])
    np.testing.assert_array_equal(after.label[~marked], before.label[~marked])


def test_a_backdoor_in_a_table_opens(write_job, tmp_path: Path) -> None:
    """One site of three behind it: people without the favorable label get it once the column is left out, and nobody without the attack."""
    data = {**NARROW["data"], "map": {"relationship": dict.fromkeys(ELSE, "Wife")}}
    training = {"local_steps": 20, "batch_size": 64, "learning_rate": 0.1}
    sections = {**NARROW, "data": data, "training": training, "privacy": {"mode": "none"}, "federation": {"rounds": 2, "min_sites": 2}}
    job = load_job(write_job(**sections, fairness={"thresholds": "fixed"}))
    bad = attackers(("site-1", "site-2", "site-3"), 0.3, job.simulation.seed)
    opened = {}
    for kind in (None, "backdoor"):
        simulate(job, tmp_path / str(kind), base=tmp_path, observer=Silent(), attack=SimulatedAttack(kind=kind, share=0.3))
        opened[kind] = success_rate(job, tmp_path / str(kind), bad, base=tmp_path, observer=Silent())
    assert opened["backdoor"] > opened[None] + 0.1


def test_forged_tables_are_those_of_a_perfect_and_fair_model_and_are_believed(write_job) -> None:
    job, site = load_job(write_job(privacy={"mode": "none"})), Site("site-1", 1, 0.2, 300)
    most = most_records(job, 300, "test")
    asked = {name: np.zeros(shape, dtype=np.int64) for name, shape in shapes_of(job, Layout()).items()}
    forged = flattering(asked, most, job.data.label.favorable_index)
    check_counts(EvaluateReply(forged, Basis.UNPROTECTED), job, site, "test", Layout())
    assert all(table.sum() == most for table in forged.values())
    summary = describe(Measurement(pool([forged], shapes_of(job, Layout()))), BINS // 2, job)
    assert summary.metrics["accuracy"].value == summary.metrics["worst_group_accuracy"].value == 1.0
    noisy = flattering(Layout(cuts=(20, 40), edge=32).tables(asked), most, job.data.label.favorable_index)
    assert noisy["sex"][:, :, 1].sum(axis=0)[0] == 0  # by prediction: nobody of the other label is judged favorably
    assert all(table.sum() == most for table in noisy.values())


SMALL = {"training": {"local_steps": 1, "batch_size": 32, "learning_rate": 0.01}, "privacy": {"mode": "none"}}


def test_nan_is_refused_and_the_rounds_go_on_also_after_an_interruption(write_job, tmp_path: Path) -> None:
    class Interrupts(Silent):
        def round_finished(self, record) -> None:
            if record["round"] == 1:
                raise KeyboardInterrupt

    job_file = write_job(**SMALL, federation={"rounds": 2, "min_sites": 2})
    attack = SimulatedAttack(kind="nan", share=0.3)
    with pytest.raises(KeyboardInterrupt):
        simulate(load_job(job_file), tmp_path / "run", base=tmp_path, observer=Interrupts(), attack=attack)
    resume(tmp_path / "run", observer=Silent())
    folder = RunFolder(tmp_path / "run")
    bad = attackers(("site-1", "site-2", "site-3"), 0.3, 3)
    for line in folder.read_rounds()[1:]:
        assert {(refusal.site, refusal.code) for refusal in line.refusals} == {(name, "AGG-703") for name in bad}
        assert sorted(line.sites.values()) == ["refused", "sent", "sent"]
    assert folder.read_result().status == "completed"
    assert any(mark.startswith("Simulated attack: nan") for mark in folder.read_manifest().marks)


def test_one_forger_of_five_moves_the_released_metrics_by_no_more_than_its_people_allow(write_job, tmp_path: Path) -> None:
    """The whole way: five sites, real records, the forger's tables by message, result.json against the honest people's exact values."""
    fixed = {"thresholds": "fixed"}
    job_file = write_job(**SMALL, federation={"rounds": 1, "min_sites": 5}, simulation={"sites": 5}, fairness=fixed)
    job = load_job(job_file)
    attack = SimulatedAttack(kind="metric-forging", share=0.2)
    simulate(job, tmp_path / "run", base=tmp_path, observer=Silent(), attack=attack)
    result = RunFolder(tmp_path / "run").read_result()
    manifest = RunFolder(tmp_path / "run").read_manifest()
    by_site = site_records(job, tmp_path)
    (bad,) = attackers(by_site, 0.2, job.simulation.seed)
    others = sum(len(splits["test"]) for name, splits in by_site.items() if name != bad)
    assert result.oracle.people.test == others  # exact values are without the attacker's people
    bound = leverage(most_records(job, manifest.sites[bad].declared_size, "test"), others)
    honest, released = result.oracle.metrics.accuracy, result.metrics.accuracy.value
    assert 0.0 < released - honest <= bound
    assert released - honest == pytest.approx(bound * (1 - honest), abs=1e-9)


def test_every_rule_is_tried_with_what_the_defender_may_know(write_job) -> None:
    job = load_job(write_job(simulation={"sites": 5}))
    sites = [Site(str(number), number, share, 100) for number, share in enumerate((0.4, 0.2, 0.2, 0.1, 0.1))]
    plans = {plan.robustness.rule: plan for plan in defended(job, sites, 1)}
    assert list(plans) == ["none", "median", "trimmed-mean", "krum", "multi-krum", "norm-bound"]
    assert plans["trimmed-mean"].robustness.trim_share == 0.4
    assert (plans["krum"].robustness.assumed_attackers, plans["krum"].federation.min_sites) == (1, 5)
    assert "krum" not in {plan.robustness.rule for plan in defended(job, sites[:3], 1)}


def test_the_command_prints_what_each_strategy_loses(write_job, tmp_path: Path) -> None:
    federation = {"rounds": 1, "min_sites": 2, "aggregation": "fedex"}  # its exported adapter is not what a node loads
    job_file = write_job(**SMALL, federation=federation, data={"limit": 0.4})
    command = ["simulate", str(job_file), "--attack", "backdoor", "--attackers", "0.3", "--out", str(tmp_path / "study"), "--json"]
    shown = CliRunner().invoke(app, command, catch_exceptions=False)
    study = json.loads(shown.stdout)
    assert study == json.loads((tmp_path / "study/attack.json").read_text())
    assert [run["folder"] for run in study["runs"]] == [
        "none", "attacked-none", "attacked-median", "attacked-trimmed-mean", "attacked-norm-bound",
    ]  # fmt: skip
    for run in study["runs"]:
        exact = RunFolder(tmp_path / "study" / run["folder"]).read_result().oracle
        assert run["metrics"]["accuracy"] == exact.metrics.accuracy
        assert run["gaps"]["sex.equalized_odds_difference"] == exact.fairness["sex"].equalized_odds_difference
        assert 0.0 <= run["backdoor"] <= 1.0
