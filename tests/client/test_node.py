"""A node answers what it approved, refuses the rest, and lets no text of an exception out."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedethos.client.app import build_client_app
from fedethos.client.evaluator import score, tabulate
from fedethos.client.examples import Indices, Inputs
from fedethos.client.node import Node
from fedethos.documents import load_job
from fedethos.fairness.decision_rules import DecisionRule, GroupRules
from fedethos.fairness.layout import DEFAULT_CUTS, Layout
from fedethos.flower import identify_process, wire_bytes
from fedethos.messages import (
    EVALUATE,
    SETUP,
    TRAIN,
    Basis,
    ErrorReply,
    EvaluateReply,
    Request,
    TrainReply,
    arrays_sha256,
    decode_reply,
    encode_request,
)
from fedethos.privacy.events import CountRelease
from fedethos.privacy.plan import plan_training
from fedethos.progress import Silent
from fedethos.simulations.virtual_sites import open_federation


@pytest.fixture
def open_node(write_job, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """``open_node(**sections of the job)``: the first of its sites."""
    with ExitStack() as opened:

        def open_one(**sections: object) -> Node:
            identify_process(run_id=1)
            job = load_job(write_job(**sections))
            ledger = tmp_path / "ledger.sqlite"
            federation = opened.enter_context(open_federation(job, base=tmp_path, scratch=tmp_path, ledger=ledger, observer=Silent()))
            return federation.nodes[1]

        yield open_one


@pytest.fixture
def node(open_node) -> Node:
    return open_node()


def request(node: Node, **changes: object) -> Request:
    fields = {"job_sha256": node.job.sha256, "run": "r", "round": 1, "attempt": 0, "arrays": node.model.read(), "split": None}
    return Request(**{**fields, **changes})


def ask(node: Node, message_type: str, content: RecordDict) -> RecordDict:
    app = build_client_app(lambda context: node)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return app(Message(content, 1, message_type), context).content


def test_a_private_update_carries_its_cost_and_nothing_else(node: Node) -> None:
    content = ask(node, TRAIN, encode_request(TRAIN, request(node)))
    reply = decode_reply(TRAIN, content)
    assert isinstance(reply, TrainReply)
    assert set(content) == {"arrays", "statement"}
    assert reply.basis is Basis.CHARGED
    assert reply.arrays.keys() == set(node.model.exchanged_names)
    plan = plan_training(node.job, declared_size=node.declared_size)
    assert reply.epsilon == pytest.approx(plan.epsilon_after(node.job.training.local_steps), rel=1e-6)
    assert reply.epsilon < node.job.privacy.epsilon


def test_the_same_round_costs_once_and_gives_the_same_bytes(node: Node) -> None:
    start = node.model.read()
    content = encode_request(TRAIN, request(node, arrays=start))
    first, second = (decode_reply(TRAIN, ask(node, TRAIN, content)) for _ in range(2))
    assert arrays_sha256(first.arrays) == arrays_sha256(second.arrays)
    assert first.steps == second.steps == node.job.training.local_steps


def refused(node: Node, message_type: str, content: RecordDict) -> str:
    before = arrays_sha256(node.model.read())
    reply = decode_reply(message_type, ask(node, message_type, content))
    assert isinstance(reply, ErrorReply)
    assert arrays_sha256(node.model.read()) == before
    return reply.code


def test_what_was_not_approved_is_refused(node: Node) -> None:
    arrays = node.model.read()
    name = next(iter(arrays))
    spoiled = {**arrays, name: np.full_like(arrays[name], np.nan)}
    assert refused(node, TRAIN, encode_request(TRAIN, request(node, job_sha256="0" * 64))) == "SEC-610"
    assert refused(node, TRAIN, encode_request(TRAIN, request(node, round=99))) == "SEC-631"
    assert refused(node, TRAIN, encode_request(TRAIN, request(node, round=0))) == "SEC-631"
    assert refused(node, TRAIN, encode_request(TRAIN, request(node, arrays={"lm_head.weight": arrays[name]}))) == "SEC-632"
    assert refused(node, TRAIN, encode_request(TRAIN, request(node, arrays={**arrays, name: arrays[name][:1]}))) == "MODEL-455"
    assert refused(node, TRAIN, encode_request(TRAIN, request(node, arrays=spoiled))) == "MODEL-457"
    assert refused(node, SETUP, encode_request(SETUP, request(node, round=0))) == "SEC-632"  # trainable tensors are not the frozen ones
    code = encode_request(TRAIN, request(node))
    code["code"] = ConfigRecord({"run": "import os"})
    assert refused(node, TRAIN, code) == "SEC-630"


def test_a_residual_is_refused_where_the_rule_leaves_none(node: Node) -> None:
    layer = next(name for name in node.model.exchanged_names if ".lora_B." in name).removesuffix(".lora_B.weight")
    arrays = node.model.read()
    d_out, d_in = arrays[f"{layer}.lora_B.weight"].shape[0], node.model.model.get_submodule(layer).in_features
    residual = {f"{layer}.residual_B.weight": np.ones((d_out, 1), np.float32), f"{layer}.residual_A.weight": np.ones((1, d_in), np.float32)}
    assert refused(node, TRAIN, encode_request(TRAIN, request(node, arrays={**arrays, **residual}))) == "SEC-632"


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_private_job_sends_no_exact_counts(node: Node, split: str) -> None:
    assert refused(node, EVALUATE, encode_request(EVALUATE, request(node, split=split))) == "PRIV-330"


def ask_for_test_counts(node: Node) -> EvaluateReply:
    layout = Layout(DEFAULT_CUTS, 30)
    content = encode_request(EVALUATE, request(node, round=3, split="test", cuts=layout.cuts, edge=layout.edge))
    reply = decode_reply(EVALUATE, ask(node, EVALUATE, content))
    assert isinstance(reply, EvaluateReply)
    return reply


def test_noisy_counts_are_paid_once_and_repeated_from_the_ledger(node: Node) -> None:
    first, again = ask_for_test_counts(node), ask_for_test_counts(node)
    assert first.basis is Basis.CHARGED and first.sigma > 0.3
    assert arrays_sha256(first.tables) == arrays_sha256(again.tables)
    assert 0 < first.epsilon == again.epsilon <= node.job.privacy.epsilon
    scores = tabulate(score(node.model, node.examples["test"], 1), node.examples["test"], node.job)
    exact = Layout(DEFAULT_CUTS, 30).tables(scores)
    assert {name: table.shape for name, table in first.tables.items()} == {name: table.shape for name, table in exact.items()}
    noise = np.concatenate([(first.tables[name] - exact[name]).ravel() for name in exact])
    assert noise.any() and np.abs(noise).max() < 8 * first.sigma


def test_counts_that_the_plan_does_not_hold_are_refused(node: Node) -> None:
    groups_of_validation = encode_request(EVALUATE, request(node, round=1, split="validation", edge=30))
    assert refused(node, EVALUATE, groups_of_validation) == "PRIV-315"


def evaluation(node: Node, **changes: object) -> RecordDict:
    return encode_request(EVALUATE, request(node, round=3, **changes))


RULES = GroupRules("sex", (DecisionRule.at(0.5), DecisionRule.at(-0.5), DecisionRule.at(0.0))).numbers
COIN = (*RULES[:-5], 0.0, 1.0, 0.0, 0.5, 1.0)


def test_training_people_are_counted_for_group_thresholds_and_nothing_else(open_node) -> None:
    node = open_node(fairness={"thresholds": "equal_opportunity"}, policy={"allow_group_thresholds": True, "reason": "a test"})
    by_group = {"attribute": "sex", "group_cuts": (20, 32)}
    for wrong in ({}, {"cuts": (20, 32)}, {"edge": 30}):
        assert refused(node, EVALUATE, evaluation(node, split="train", **wrong)) == "SEC-630"
    for wrong in ({**by_group, "edge": 30}, {**by_group, "cuts": (20,)}):
        assert refused(node, EVALUATE, evaluation(node, split="train", **wrong)) == "SEC-650"
    assert refused(node, EVALUATE, evaluation(node, split="test", **by_group)) == "SEC-630"
    assert refused(node, EVALUATE, evaluation(node, split="train", attribute="race", group_cuts=(32,))) == "SEC-651"
    assert refused(node, EVALUATE, evaluation(node, split="test", cuts=(32,), attribute="sex", rules=RULES[:-5])) == "SEC-651"
    assert refused(node, EVALUATE, evaluation(node, split="test", cuts=(32,), attribute="race", rules=RULES)) == "SEC-651"
    assert refused(node, EVALUATE, evaluation(node, split="test", cuts=(32,), attribute="sex", rules=COIN)) == "SEC-651"
    assert refused(node, EVALUATE, evaluation(node, split="test", attribute="sex", rules=RULES, edge=30)) == "AGG-763"
    first = decode_reply(EVALUATE, ask(node, EVALUATE, evaluation(node, split="train", **by_group)))
    assert isinstance(first, EvaluateReply) and first.basis is Basis.CHARGED
    assert {name: table.shape for name, table in first.tables.items()} == {":group-scores": (3, 2, 3)}
    later = encode_request(EVALUATE, request(node, round=2, split="train", **by_group))
    assert refused(node, EVALUATE, later) == "PRIV-315"  # once


def test_a_job_without_group_thresholds_answers_neither(node: Node) -> None:
    assert refused(node, EVALUATE, evaluation(node, split="train", attribute="sex", group_cuts=(32,))) == "SEC-651"
    assert refused(node, EVALUATE, evaluation(node, split="test", cuts=(32,), attribute="sex", rules=RULES)) == "SEC-651"


def test_a_strategy_may_ask_for_training_scores_by_group_once_a_period_and_for_no_decisions(open_node) -> None:
    node = open_node(fairness={"strategy": "controller", "every": 2}, federation={"rounds": 5, "min_sites": 2})
    by_group = {"split": "train", "attribute": "sex", "group_cuts": (32,)}
    assert refused(node, EVALUATE, evaluation(node, **{**by_group, "attribute": "race"})) == "SEC-651"
    assert refused(node, EVALUATE, evaluation(node, split="test", cuts=(32,), attribute="sex", rules=RULES)) == "SEC-651"
    for number, code in ((2, None), (4, None), (3, "PRIV-315")):
        content = encode_request(EVALUATE, request(node, round=number, **by_group))
        if code is None:
            reply = decode_reply(EVALUATE, ask(node, EVALUATE, content))
            assert isinstance(reply, EvaluateReply) and reply.basis is Basis.CHARGED
        else:
            assert refused(node, EVALUATE, content) == code


def test_after_lost_counts_there_is_still_room_for_all_that_the_strategy_will_ask_for(open_node) -> None:
    steered = {"strategy": "controller", "every": 2}
    node = open_node(fairness=steered, federation={"rounds": 5, "min_sites": 2}, privacy={"secure_rng": True})
    assert node.ledger is not None
    before = node.ledger.reserve("group-scores/train", 2).event  # paid, and killed before the reply was stored
    for number in (2, 4):
        content = encode_request(EVALUATE, request(node, round=number, split="train", attribute="sex", group_cuts=(32,)))
        reply = decode_reply(EVALUATE, ask(node, EVALUATE, content))
        assert isinstance(reply, EvaluateReply) and reply.sigma is not None and isinstance(before, CountRelease)
        assert reply.sigma > before.sigma


@pytest.mark.parametrize("lost", [3, 0])
def test_after_lost_counts_there_is_still_room_for_those_of_the_untrained_model(open_node, lost: int) -> None:
    node = open_node(privacy={"secure_rng": True, "metrics": {"baseline": True}})
    asked = [3, 0]  # the final model, then the untrained one
    for number in asked[: asked.index(lost)]:
        ask(node, EVALUATE, encode_request(EVALUATE, request(node, round=number, split="test", cuts=DEFAULT_CUTS, edge=32)))
    assert node.ledger is not None
    node.ledger.reserve("groups+scores/test", lost)  # paid, and killed before the reply was stored
    for number in asked:
        content = encode_request(EVALUATE, request(node, round=number, split="test", cuts=DEFAULT_CUTS, edge=32))
        assert isinstance(decode_reply(EVALUATE, ask(node, EVALUATE, content)), EvaluateReply)
    assert node.ledger.spent() <= node.job.privacy.epsilon


def test_decisions_by_group_are_counted_for_every_attribute(open_node) -> None:
    node = open_node(
        privacy={"mode": "none", "epsilon": None},
        data={"sensitive": {"sex": ["Female", "Male"], "race": ["White", "Black", "Asian-Pac-Islander", "Amer-Indian-Eskimo", "Other"]}},
        fairness={"thresholds": "equal_opportunity", "attribute": "sex"},
        policy={"allow_group_thresholds": True, "reason": "a test"},
    )
    examples = node.examples["test"]
    scores = score(node.model, examples, 1)
    rules = GroupRules("sex", tuple(DecisionRule.at(float(np.quantile(scores, at))) for at in (0.3, 0.7, 0.5)))
    content = evaluation(node, split="test", cuts=(32,), attribute="sex", rules=rules.numbers)
    reply = decode_reply(EVALUATE, ask(node, EVALUATE, content))
    assert isinstance(reply, EvaluateReply) and reply.basis is Basis.UNPROTECTED
    favored = scores >= np.array([rule.low for rule in rules.rules])[examples.groups["sex"]]
    for attribute, group in examples.groups.items():
        for g, label, decision in np.ndindex(reply.tables[attribute].shape):
            expected = np.sum((group == g) & (examples.label == label) & (favored == decision))
            assert reply.tables[attribute][g, label, decision] == expected


def test_text_of_an_exception_stays_at_the_site(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    canary = "patient=JANE DOE mrn=12345"
    node.source_of = lambda round, step: (_ for _ in ()).throw(ValueError(canary))
    with caplog.at_level(logging.ERROR, logger="fedethos.incidents"):
        content = ask(node, TRAIN, encode_request(TRAIN, request(node)))
    reply = decode_reply(TRAIN, content)
    assert isinstance(reply, ErrorReply) and reply.code == "NODE-500" and len(reply.incident) == 16
    assert not any(canary.encode() in part for part in wire_bytes(content).values())
    assert canary in caplog.text and reply.incident in caplog.text  # the operator can look it up


def test_the_detail_of_a_typed_error_stays_at_the_site_too(node: Node) -> None:
    content = ask(node, TRAIN, encode_request(TRAIN, request(node, round=99)))
    assert set(content.config_records["error"]) == {"code", "incident"}


class Poisoned:
    """The first ten records have hidden states that are not finite."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self.lengths = inputs.lengths

    def batch(self, indices: Indices) -> dict[str, torch.Tensor]:
        made = self._inputs.batch(indices)
        made["inputs_embeds"][torch.from_numpy(indices < 10)] = torch.nan
        return made


@pytest.mark.parametrize("engine", ["fused", "opacus"])
def test_records_that_are_not_finite_add_nothing_and_only_the_sites_own_log_says_so(
    open_node, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    node = open_node(privacy={"epsilon": 8.0, "engine": engine})
    poisoned = dataclasses.replace(node.examples["train"], inputs=Poisoned(node.examples["train"].inputs))
    node = dataclasses.replace(node, examples={**node.examples, "train": poisoned})
    with caplog.at_level(logging.WARNING, logger="fedethos.incidents"):
        content = ask(node, TRAIN, encode_request(TRAIN, request(node)))
    reply = decode_reply(TRAIN, content)
    assert isinstance(reply, TrainReply)
    assert all(np.isfinite(array).all() for array in reply.arrays.values())
    [said] = [record.getMessage() for record in caplog.records]
    assert said.startswith("round 1: ")
    assert "times a record added nothing" in said
    assert set(content["statement"]) == {"basis", "unit", "adjacency", "epsilon", "delta", "steps"}
