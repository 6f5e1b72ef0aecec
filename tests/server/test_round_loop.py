"""The round loop against sites that are late, broken or hostile. Tensors and weights are small enough to work out by hand."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedethos.documents import dump_job
from fedethos.errors import FedethosError
from fedethos.fairness.histograms import BINS, OVERALL
from fedethos.fairness.layout import Layout
from fedethos.job import Job
from fedethos.messages import TRAIN, Basis, ErrorReply, EvaluateReply, SetupReply, TrainReply, decode_request, encode_reply
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.server.app import build_server_app
from fedethos.server.loop import Coordination
from fedethos.server.site import Site
from fedethos.server.validation import check_update
from fedethos.simulations.grid import InProcessGrid

BASE = "b" * 64
SHARES = {1: 0.5, 2: 0.3, 3: 0.2}
Answer = Callable[[Message], RecordDict]


def job(**federation: object) -> Job:
    return Job.model_validate(
        {
            "schema": "fedethos/job/v1",
            "name": "loop",
            "model": {"path": "asset:minilm"},
            "data": {"path": "builtin:adult", "text": "{age}", "label": {"column": "y", "values": ["a", "b"], "favorable": "b"}},
            "robustness": {"max_update_norm": 100.0},
            "federation": {"rounds": 2, "min_sites": 2, "aggregation": "fedavg", **federation},
        }
    )


def update(value: float, **changes: object) -> TrainReply:
    fields: dict[str, object] = {
        "arrays": {"w": np.full(2, value, dtype=np.float32)},
        "basis": Basis.CHARGED,
        "unit": "record",
        "adjacency": "add-remove",
        "epsilon": 1.0,
        "delta": 1e-5,
        "steps": 20,
    }
    return TrainReply(**{**fields, **changes})


def adds(step: float) -> Answer:
    """A good site: adds ``step`` to what it got."""
    return lambda message: encode_reply(update(float(decode_request(message).arrays["w"][0]) + step))


def notes_weights(asked: list[tuple[float, ...] | None]) -> Answer:
    """A good site that writes down the cell weights it was asked to train with."""

    def answer(message: Message) -> RecordDict:
        asked.append(decode_request(message).cell_weights)
        return adds(1.0)(message)

    return answer


def says(reply: TrainReply | ErrorReply) -> Answer:
    return lambda _: encode_reply(reply)


def federate(
    tmp_path: Path,
    answers: dict[int, Answer],
    plan: Job | None = None,
    *,
    base: dict[int, str] | None = None,
    lost: int | None = None,
    forger: int | None = None,
    says_of_counts: dict[int, dict[str, object]] | None = None,
) -> list[dict[str, object]]:
    """Run the loop; node ``lost`` never answers a train message, ``forger`` counts each person 1,000 times. Returns rounds.jsonl."""
    plan = plan or job()
    app = ClientApp()

    @app.query("setup")
    def setup(message: Message, context: Context) -> Message:
        return Message(encode_reply(SetupReply("0.1.0", (base or {}).get(context.node_id, BASE))), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(answers[context.node_id](message), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        request = decode_request(message)
        layout = Layout(request.cuts, request.edge)
        people = np.random.default_rng(context.node_id).integers(0, 2, (1, 2, BINS)) * (1000 if context.node_id == forger else 1)
        nobody = np.zeros_like(people)  # everybody is in the first group
        tables = layout.tables(
            {name: np.concatenate([people] + [nobody] * len(groups)) for name, groups in plan.data.sensitive.items()} or {OVERALL: people}
        )
        statement = {"basis": Basis.CHARGED, "sigma": 1.0, "epsilon": 2.0, **(says_of_counts or {}).get(context.node_id, {})}
        return Message(encode_reply(EvaluateReply(tables, **statement)), reply_to=message)

    class Grid(InProcessGrid):
        def pull_messages(self, message_ids):
            reachable = [one for one in message_ids if not self._is_lost(one)]
            return super().pull_messages(reachable)

        def _is_lost(self, message_id: str) -> bool:
            message = self._pending.get(message_id)
            return message is not None and message.metadata.dst_node_id == lost and message.metadata.message_type == TRAIN

    contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in answers}
    with RunFolder(tmp_path / "run").create() as folder:
        folder.write_job(dump_job(plan))
        coordination = Coordination(
            job=plan,
            run="loop-00000001",
            folder=folder,
            sites={node: Site(f"site-{node}", node, SHARES[node], 1000) for node in answers},
            base_sha256=BASE,
            initial={"w": np.zeros(2, dtype=np.float32)},
            frozen={},
            export=lambda arrays, where: np.save(tmp_path / "final.npy", arrays["w"]),
            observer=Silent(),
            engine="test",
            started=time.monotonic(),
        )
        build_server_app(coordination)(Grid(app, contexts, wire=True), contexts[1])
    return [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]


def final(tmp_path: Path) -> float:
    return float(np.load(tmp_path / "final.npy")[0])


def test_every_round_carries_the_jobs_cell_weights(tmp_path: Path) -> None:
    asked: list[tuple[float, ...] | None] = []
    plan = job()
    data = plan.data.model_copy(update={"sensitive": {"sex": ["F", "M"]}})
    fairness = plan.fairness.model_copy(update={"cell_weights": {"F": {"b": 1.8}, "unknown": {"a": 0.5}}})
    weighed = plan.model_copy(update={"data": data, "fairness": fairness})
    federate(tmp_path, dict.fromkeys(SHARES, notes_weights(asked)), weighed)
    assert asked == [(1.0, 1.8, 1.0, 1.0, 0.5, 1.0)] * 6


def test_two_rounds_by_hand(tmp_path: Path) -> None:
    rounds = federate(tmp_path, {1: adds(1.0), 2: adds(2.0), 3: adds(3.0)})
    assert final(tmp_path) == pytest.approx(2 * (0.5 * 1 + 0.3 * 2 + 0.2 * 3))
    assert [line["sites"] for line in rounds] == [{}, *[{"site-1": "sent", "site-2": "sent", "site-3": "sent"}] * 2]
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["basis"], result["oracle"], result["baseline"]) == ("released", None, {})
    assert result["metrics"]["accuracy"]["value"] is not None
    assert all(site["epsilon"] == 2.0 for site in result["privacy"]["sites"].values())  # the counts cost more than training did


def spoiled(**arrays: np.ndarray) -> Answer:
    def answer(_: Message) -> RecordDict:
        content = encode_reply(update(1.0))
        content.array_records["arrays"].clear()
        content.array_records["arrays"].update({name: Array(array) for name, array in arrays.items()})
        return content

    return answer


def with_metric(_: Message) -> RecordDict:
    content = encode_reply(update(1.0))
    content["metrics"] = MetricRecord({"num-examples": 1e9})
    return content


BAD = {
    "AGG-701": with_metric,
    "AGG-702": spoiled(v=np.ones(2, dtype=np.float32)),
    "AGG-702 ": spoiled(w=np.ones(3, dtype=np.float32)),
    "AGG-702  ": spoiled(w=np.ones(2, dtype=np.float32), extra=np.ones(1, dtype=np.float32)),
    "AGG-701 ": spoiled(w=np.ones(2)),
    "AGG-703": says(update(float("nan"))),
    "AGG-703 ": says(update(float("inf"))),
    "AGG-704": says(update(1e6)),
    "AGG-705": says(update(1.0, epsilon=None, delta=None)),
    "AGG-705 ": says(update(1.0, epsilon=99.0)),
    "AGG-705  ": says(update(1.0, unit="person")),
    "AGG-705   ": says(update(1.0, epsilon=float("nan"))),
    "AGG-705    ": says(update(1.0, delta=1e-3)),
    "AGG-705     ": says(update(1.0, basis=Basis.UNPROTECTED)),
    "AGG-705      ": says(update(1.0, steps=10**9)),
    "AGG-715": says(update(2e6)),
    "NODE-500": says(ErrorReply("NODE-500", "0123abcd")),
}


@pytest.mark.parametrize("code", BAD)
def test_a_bad_reply_is_refused_and_the_round_goes_on(tmp_path: Path, code: str) -> None:
    rounds = federate(tmp_path, {1: adds(1.0), 2: adds(2.0), 3: BAD[code]})
    assert final(tmp_path) == pytest.approx(2 * (0.5 * 1 + 0.3 * 2) / 0.8, rel=1e-6)  # as if site 3 had not been there
    for line in rounds[1:]:
        assert line["sites"]["site-3"] == "refused"
        assert [(refusal["site"], refusal["code"]) for refusal in line["refusals"]] == [("site-3", code.strip())]
    assert rounds[-1]["epsilon"]["site-3"] is None


def test_a_silent_site_is_late_at_the_deadline_and_the_round_goes_on(tmp_path: Path) -> None:
    rounds = federate(tmp_path, {1: adds(1.0), 2: adds(2.0), 3: adds(3.0)}, job(deadline="1s", rounds=1), lost=3)
    assert rounds[1]["sites"] == {"site-1": "sent", "site-2": "sent", "site-3": "late"}
    assert final(tmp_path) == pytest.approx((0.5 * 1 + 0.3 * 2) / 0.8)


def test_below_the_quorum_the_round_fails_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    rounds_done = 0

    def once(message: Message) -> RecordDict:
        nonlocal rounds_done
        rounds_done = max(rounds_done, decode_request(message).round)
        return encode_reply(update(1.0)) if decode_request(message).round == 1 else encode_reply(ErrorReply("NODE-500", "feed"))

    with pytest.raises(FedethosError, match="AGG-710") as failure:
        federate(tmp_path, {1: adds(1.0), 2: once, 3: once})
    assert "site-2 with NODE-500 (incident feed)" in str(failure.value)  # the coordinator can ask the site about this incident
    assert rounds_done == 2
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["round-0000", "round-0001"]
    assert not (tmp_path / "run/result.json").exists()


def test_sites_that_have_not_approved_are_said_to_have_to(tmp_path: Path) -> None:
    unasked = encode_reply(ErrorReply("SEC-611", "feed"))
    with pytest.raises(FedethosError, match="fedethos client approve JOB at each"):
        federate(tmp_path, {1: adds(1.0), 2: lambda _: unasked, 3: lambda _: unasked})


def test_a_site_with_another_base_model_takes_no_part(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="AGG-710"):
        federate(tmp_path, {1: adds(1.0), 2: adds(2.0), 3: adds(1.0)}, job(min_sites=3), base={3: "c" * 64})


def test_a_sites_own_claim_of_size_is_never_read(tmp_path: Path) -> None:
    """The weight comes from the approved share, whatever a site would like: with_metric above is refused, not weighed."""
    federate(tmp_path, {1: adds(1.0), 2: adds(1.0), 3: adds(10.0)}, job(rounds=1))
    assert final(tmp_path) == pytest.approx(0.8 + 0.2 * 10)


def test_a_robust_rule_stands_before_aggregation(tmp_path: Path) -> None:
    """Weights .5 .3 .2; the weighted median of 1, 2 and 3 lies half way between 1 and 2."""
    plan = job(rounds=1)
    robust = plan.model_copy(update={"robustness": plan.robustness.model_copy(update={"rule": "median"})})
    federate(tmp_path, {1: adds(1.0), 2: adds(2.0), 3: adds(50.0)}, robust)
    assert final(tmp_path) == pytest.approx(1.5)


def test_flowers_fedadam_works_behind_a_robust_rule(tmp_path: Path) -> None:
    """FedAdam with the median's step of 1.5 in both: what site 3 sends makes no difference."""
    plan = job(rounds=1, server_optimizer="fedadam")
    robust = plan.model_copy(update={"robustness": plan.robustness.model_copy(update={"rule": "median"})})
    for number, step in enumerate((3.0, 50.0)):
        (tmp_path / str(number)).mkdir()
        federate(tmp_path / str(number), {1: adds(1.0), 2: adds(2.0), 3: adds(step)}, robust)
    assert final(tmp_path / "0") == final(tmp_path / "1") != 0.0


def test_forged_counts_are_refused_and_the_run_ends_with_the_others(tmp_path: Path) -> None:
    people = federate(tmp_path, {1: adds(1.0), 2: adds(2.0), 3: adds(3.0)}, job(rounds=1), forger=3)
    assert people[-1]["sites"]["site-3"] == "sent"  # its update is as good as any
    counted = json.loads((tmp_path / "run/fairness.json").read_text())["people"]["test"]
    assert counted == sum(int(np.random.default_rng(node).integers(0, 2, (1, 2, BINS)).sum()) for node in (1, 2))


@pytest.mark.parametrize(
    "statement",
    [{"epsilon": float("nan")}, {"epsilon": 1e9}, {"epsilon": -1.0}, {"sigma": float("inf")}, {"sigma": 0.0}, {"basis": Basis.UNPROTECTED}],
)
def test_counts_that_state_another_protection_are_refused(tmp_path: Path, statement: dict[str, object]) -> None:
    """A site that claims a NaN must not be able to end the run of everybody."""
    federate(tmp_path, {1: adds(1.0), 2: adds(2.0), 3: adds(3.0)}, job(rounds=1), says_of_counts={3: statement})
    sites = json.loads((tmp_path / "run/privacy.json").read_text())["sites"]
    assert [sites[f"site-{node}"]["epsilon"] for node in (1, 2, 3)] == [2.0, 2.0, 1.0]  # 1.0: what its good update said


def test_nan_behind_a_good_tensor_is_found() -> None:
    sent = {name: np.zeros(2, dtype=np.float32) for name in ("a", "b", "c")}
    for bad in sent:
        arrays = {name: np.full(2, np.nan if name == bad else 1.0, dtype=np.float32) for name in sent}
        with pytest.raises(FedethosError, match="AGG-703"):
            check_update(update(0.0, arrays=arrays), sent, job())
