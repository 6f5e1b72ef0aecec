"""Personal adapters on a node: Ditto's update by hand, what is on disk, and what is refused."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from fedethos.client.node import Node
from fedethos.client.personal import KEPT, PersonalAdapter
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.messages import Request
from fedethos.privacy.counts import plan_counts, sigma_for
from fedethos.privacy.events import CountRelease, TrainingSteps
from fedethos.privacy.planner import allotments, training_noise
from fedethos.progress import Silent
from fedethos.simulations.virtual_sites import open_federation

RELEASING = {"personal": {"release_counts": True}}


@pytest.fixture
def open_node(write_job, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    with ExitStack() as opened:

        def open_one(**sections: object) -> Node:
            job = load_job(write_job(**sections))
            scratch = tmp_path / job.sha256[:8]
            scratch.mkdir()
            federation = open_federation(job, base=tmp_path, scratch=scratch, ledger=scratch / "ledger.sqlite", observer=Silent())
            return opened.enter_context(federation).nodes[1]

        yield open_one


def request(node: Node, round: int, **changes: object) -> Request:
    fields = {"job_sha256": node.job.sha256, "run": "r", "round": round, "attempt": 0, "arrays": node.model.read()}
    return Request(**{**fields, **changes})


def value(adapter: PersonalAdapter, round: int) -> float | None:
    arrays = adapter.at(round)
    return None if arrays is None else float(arrays["w"][0])


def test_the_newest_version_up_to_a_round_counts_and_an_abandoned_future_goes(tmp_path: Path) -> None:
    adapter = PersonalAdapter(tmp_path / "personal")
    assert adapter.at(9) is None
    for round in (1, 2, 5, 6, 9):  # not asked in between
        adapter.keep(round, {"w": np.float32([round])})
    assert [value(adapter, round) for round in (1, 2, 4, 5, 8, 20)] == [None, 2.0, 2.0, 5.0, 6.0, 9.0]
    assert len(list(adapter.folder.iterdir())) == KEPT
    adapter.keep(6, {"w": np.float32([60])})  # the coordinator went back
    assert [value(adapter, round) for round in (5, 6, 9)] == [5.0, 60.0, 60.0]
    assert adapter.folder.stat().st_mode & 0o077 == 0


def test_a_damaged_version_is_refused_and_not_passed_over(tmp_path: Path) -> None:
    adapter = PersonalAdapter(tmp_path)
    for round in (1, 2):
        adapter.keep(round, {"w": np.float32([round])})
    (tmp_path / "round-0002.safetensors").write_bytes(save({"w": np.float32([2])})[:-1])
    assert value(adapter, 1) == 1.0
    with pytest.raises(FedethosError, match="NODE-560"):
        adapter.at(2)


@pytest.mark.parametrize("round", [1, 2])
def test_in_a_round_the_personal_lora_trains_what_the_global_one_trains(open_node, round: int) -> None:
    """rolora: B in odd rounds, A in even ones; the other factor rests in both. A warm-up round trains the head alone."""
    federation = {"aggregation": "rolora", "rounds": 2}
    node = open_node(training={"personal": {}, "head_warmup_rounds": 0}, privacy={"mode": "none", "epsilon": None}, federation=federation)
    before = {name: array + np.float32(0.01) for name, array in node.model.read().items()}
    node.train(request(node, round, arrays=before))
    personal = node.personal.at(round)
    moved = {name.rsplit(".", 2)[-2] for name in before if "lora_" in name and not np.array_equal(personal[name], before[name])}
    assert moved == {"lora_B" if round == 1 else "lora_A"}
    assert all(not np.array_equal(personal[name], before[name]) for name in node.model.head_names())


def test_a_head_warm_up_holds_for_the_personal_adapter_too(open_node) -> None:
    node = open_node(training={"personal": {}, "head_warmup_rounds": 1}, privacy={"mode": "none", "epsilon": None})
    before = node.model.read()
    node.train(request(node, 1))
    after = node.personal.at(1)
    assert {name for name in before if not np.array_equal(after[name], before[name])} == node.model.head_names()


def test_without_released_counts_a_private_job_has_the_plan_and_the_update_of_one_without_personal_adapters(open_node) -> None:
    """Nothing that leaves depends on the personal adapter, which trains without noise beside it."""
    plain, ditto = open_node(), open_node(training={"personal": {}})
    assert allotments(plain.job, declared_size=300) == allotments(ditto.job, declared_size=300)
    updates = [node.train(request(node, 1)) for node in (plain, ditto)]
    for name, array in updates[0].arrays.items():
        np.testing.assert_array_equal(array, updates[1].arrays[name])
    assert updates[0].epsilon == updates[1].epsilon


def test_the_noise_of_the_personal_adapter_is_that_of_the_global_one_exactly_where_its_counts_are_released(open_node) -> None:
    """Nobody is sampled in 1e-9 of the steps, so a step of learning rate 1 leaves pure noise: sigma C / B in every coordinate."""
    training = {"local_steps": 1, "batch_size": 1, "optimizer": "sgd", "learning_rate": 1.0, "head_warmup_rounds": 0}
    sites = {f"s{n}": {"declared_size": 1_000_000} for n in range(3)}
    privacy, federation = {"epsilon": 0.1, "delta": 1e-7}, {"sites": sites, "rounds": 1, "min_sites": 1}
    spreads = {}
    for released in (True, False):
        own = {"proximal_mu": 0.0, "release_counts": released}
        node = open_node(training={**training, "personal": own}, privacy=privacy, federation=federation)
        start = node.model.read()
        reply = node.train(request(node, 1, arrays=start))
        noise = training_noise(node.job, declared_size=1_000_000)
        difference = [node.personal.at(1)[name] - start[name] for name in reply.arrays]
        spreads[released] = np.concatenate([array.ravel() for array in difference]).std() / noise
    assert spreads[True] == pytest.approx(1.0, rel=0.1)
    assert spreads[False] == 0.0


@pytest.mark.parametrize(("privacy", "released", "noticed"), [({}, False, False), ({}, True, True), ({"mode": "none"}, False, True)])
def test_a_personal_adapter_without_noise_that_diverges_changes_nothing_that_leaves(
    open_node, caplog: pytest.LogCaptureFixture, privacy: dict[str, object], released: bool, noticed: bool
) -> None:
    own = {"release_counts": released, "learning_rate": 1e38, "local_steps": 3}
    node = open_node(training={"optimizer": "sgd", "personal": own}, privacy=privacy)
    if noticed:
        with pytest.raises(FedethosError, match="NODE-510"):
            node.train(request(node, 1))
        return
    start = node.model.read()
    assert node.train(request(node, 1, arrays=start)).arrays.keys() <= start.keys()
    assert "The personal adapter did not train in round 1." in caplog.text
    assert node.personal.at(1) is None
    assert node.train(request(node, 2, arrays=start)).epsilon is not None


def test_released_personal_counts_cost_steps_and_counts_of_their_own(open_node) -> None:
    """Twice the steps under the same budget, and two releases on the test people in place of one."""
    training = {"local_steps": 3, "personal": {"release_counts": True, "local_steps": 5}}
    job = open_node(training=training).job
    (train, *counts) = allotments(job, declared_size=300)
    assert isinstance(train.event, TrainingSteps)
    assert (train.event.steps, train.times) == (8, 3)
    as_long = load_job_like(job, local_steps=8)
    assert train.event.noise_multiplier == training_noise(as_long, declared_size=300)
    expected = {"scores/validation", "groups+scores/test", "personal-scores/validation", "personal-groups+scores/test"}
    assert {one.purpose for one in counts} == expected
    assert all(one.times == 1 for one in counts)
    sigma = sigma_for(tables=4, rows=1, epsilon=8.0, delta=1e-5, adjacency="add-remove")  # twice scores and groups by sex
    releases = [one.release for one in plan_counts(job) if one.population == "test"]
    assert releases == [CountRelease(sigma=sigma, rows=1, tables=2, population="test")] * 2


def load_job_like(job, **training: object):
    return job.model_copy(update={"training": job.training.model_copy(update={"personal": None, **training})})


def test_a_site_that_has_not_trained_is_counted_with_the_global_adapter(open_node) -> None:
    node = open_node(training={"personal": {"release_counts": True}}, privacy={"mode": "none", "epsilon": None})
    asked = {"split": "test", "arrays": node.model.read()}
    before = [node.evaluate(request(node, 2, personal=personal, **asked)).tables["sex"] for personal in (False, True)]
    np.testing.assert_array_equal(*before)
    node.train(request(node, 1))
    after = node.evaluate(request(node, 2, personal=True, **asked)).tables["sex"]
    assert not np.array_equal(before[1], after)
    np.testing.assert_array_equal(node.evaluate(request(node, 2, **asked)).tables["sex"], before[0])


@pytest.mark.parametrize("training", [{}, {"personal": {}}])
def test_counts_that_the_job_does_not_release_are_refused(open_node, training: dict[str, object]) -> None:
    node = open_node(training=training, privacy={"mode": "none", "epsilon": None})
    with pytest.raises(FedethosError, match="SEC-652"):
        node.evaluate(request(node, 1, split="test", personal=True))


def test_a_node_without_a_folder_for_the_personal_adapter_computes_nothing(open_node) -> None:
    node = open_node(training=RELEASING)
    node.personal = None
    with pytest.raises(FedethosError, match="NODE-561"):
        node.train(request(node, 1))


@pytest.mark.parametrize("rule", ["fedsvd", "fedex", "flora", "flexlora"])
def test_rules_that_write_a_and_b_anew_keep_no_personal_adapter(write_job, rule: str) -> None:
    with pytest.raises(FedethosError, match="CFG-295"):
        load_job(write_job(training={"personal": {}}, federation={"aggregation": rule}))


def test_thresholds_per_group_are_not_fitted_to_personal_adapters(write_job) -> None:
    policy = {"allow_group_thresholds": True, "reason": "r"}
    fairness = {"thresholds": "equal_opportunity"}
    load_job(write_job(training={"personal": {}}, fairness=fairness, policy=policy))
    with pytest.raises(FedethosError, match="CFG-296"):
        load_job(write_job(training=RELEASING, fairness=fairness, policy=policy))
