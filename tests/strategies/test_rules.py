"""Each aggregation rule against dense algebra: what a layer computes after the round is worked out here with full matrices in float64."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedethos.aggregation import Aggregation, ever_trained, is_residual, trained_in
from fedethos.errors import FedethosError
from fedethos.flower import identify_process
from fedethos.messages import Arrays, encode_arrays
from fedethos.models.lowrank import Product, added, compressed, frobenius, with_orthonormal_a
from fedethos.strategies.averaging import aggregation_error
from fedethos.strategies.fedavg import AdapterFedAvg
from fedethos.strategies.fedex import FedEx
from fedethos.strategies.fedsb import FedSb
from fedethos.strategies.fedsvd import FedSvd
from fedethos.strategies.ffa import FfaLora
from fedethos.strategies.flexlora import FlexLora
from fedethos.strategies.flora import Flora
from fedethos.strategies.rolora import RoLora

LAYERS = {"enc.0.query": (7, 9), "enc.1.dense": (12, 5)}  # (out, in)
RANK, WEIGHTS = 3, [0.5, 0.3, 0.2]
HEAD = "classifier.weight"

RULES = {
    "fedavg": AdapterFedAvg(),
    "ffa": FfaLora(),
    "rolora": RoLora(),
    "fedsvd": FedSvd(),
    "fedex": FedEx(),
    "flora": Flora(seed=4),
    "flexlora": FlexLora(),
    "fedsb": FedSb(),
}
EXACT = ("ffa", "rolora", "fedsvd", "fedex", "flora", "fedsb")


def adapter(rng: np.random.Generator, *, core: bool = False) -> Arrays:
    arrays = {HEAD: rng.normal(size=(2, 4))}
    arrays |= {f"{layer}.lora_A.default.core.weight": rng.normal(size=(RANK, RANK)) for layer in LAYERS if core}
    for layer, (d_out, d_in) in LAYERS.items():
        arrays |= {f"{layer}.lora_A.weight": rng.normal(size=(RANK, d_in)), f"{layer}.lora_B.weight": rng.normal(size=(d_out, RANK))}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def dense(arrays: Arrays, layer: str) -> np.ndarray:
    """The layer's update, by plain matrix products."""
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    b = wide[f"{layer}.lora_B.weight"]
    core = wide.get(f"{layer}.lora_A.default.core.weight", np.eye(b.shape[1]))
    update = b @ core @ wide[f"{layer}.lora_A.weight"]
    if f"{layer}.residual_B.weight" in wide:
        update = update + wide[f"{layer}.residual_B.weight"] @ wide[f"{layer}.residual_A.weight"]
    return update


def one_round(rule: str, round: int, sent: Arrays, updates: list[Arrays]) -> Arrays:
    """Through Flower's interface, as any ServerApp would drive the strategy."""
    identify_process(run_id=1)
    strategy = RULES[rule]

    class Nobody:
        def get_node_ids(self) -> list[int]:
            return [1, 2, 3]

    asked = list(strategy.configure_train(round, encode_arrays(sent), ConfigRecord(), Nobody()))
    by_node = {message.metadata.dst_node_id: message for message in asked}
    replies = [
        Message(RecordDict({"arrays": encode_arrays(update), "metrics": MetricRecord({"num-examples": weight})}), reply_to=by_node[node])
        for node, (update, weight) in enumerate(zip(updates, WEIGHTS, strict=True), start=1)
    ]
    arrays, _ = strategy.aggregate_train(round, replies)
    return {name: array.numpy() for name, array in arrays.items()}


@pytest.fixture(autouse=True)
def everybody_is_asked() -> None:
    for strategy in RULES.values():
        strategy.min_available_nodes = strategy.min_train_nodes = 3


def federated(rule: Aggregation, rounds: int) -> list[tuple[Arrays, Arrays, list[Arrays], Arrays]]:
    """(before, frozen, updates, after) of some rounds in which sites train at random."""
    rng = np.random.default_rng(11)
    start = adapter(rng, core=rule == "fedsb")
    once = {"ffa": (".lora_A.weight",), "fedsb": (".lora_A.weight", ".lora_B.weight")}.get(rule, ())
    frozen = {name: array for name, array in start.items() if name.endswith(tuple(once))}
    current = {name: array for name, array in start.items() if name not in frozen}
    seen = []
    for number in range(1, rounds + 1):
        names = trained_in(rule, number, current)
        updates = [{name: value for name, value in adapter(rng, core=rule == "fedsb").items() if name in names} for _ in WEIGHTS]
        after = one_round(rule, number, current, updates)
        seen.append((current, frozen, updates, after))
        current = after
    return seen


@pytest.mark.parametrize("rule", EXACT)
def test_exact_rules_give_the_mean_of_the_updates_in_every_round(rule: Aggregation) -> None:
    for before, frozen, updates, after in federated(rule, rounds=4):
        for layer in LAYERS:
            sites = [dense({**frozen, **before, **update}, layer) for update in updates]
            mean = sum(weight * site for weight, site in zip(WEIGHTS, sites, strict=True))
            np.testing.assert_allclose(dense({**frozen, **after}, layer), mean, atol=1e-5 * np.linalg.norm(mean))
        assert aggregation_error(before, updates, WEIGHTS, after, frozen) < 1e-6
        mean_head = sum(weight * update[HEAD].astype(np.float64) for weight, update in zip(WEIGHTS, updates, strict=True))
        np.testing.assert_allclose(after[HEAD], mean_head, atol=1e-6)


@pytest.mark.parametrize("rule", ["fedavg", "flexlora", "fedex", "fedsvd"])
def test_the_logged_error_is_the_dense_distance(rule: Aggregation) -> None:
    for before, frozen, updates, after in federated(rule, rounds=3):
        difference = norm = 0.0
        for layer in LAYERS:
            mean = sum(weight * dense({**before, **update}, layer) for weight, update in zip(WEIGHTS, updates, strict=True))
            difference += np.square(dense(after, layer) - mean).sum()
            norm += np.square(mean).sum()
        expected = np.sqrt(difference / norm)
        assert aggregation_error(before, updates, WEIGHTS, after, frozen) == pytest.approx(expected, rel=1e-4, abs=1e-7)
        assert (expected > 0.1) == (rule in ("fedavg", "flexlora"))  # three sites of rank 3: much lies beyond rank 3


def test_rolora_trains_one_factor_a_round_and_leaves_the_other_bit_by_bit() -> None:
    for number, (before, _, updates, after) in enumerate(federated("rolora", rounds=4), start=1):
        still = {name for name in before if (before[name] == after[name]).all()}
        assert still == {name for name in before if (".lora_A." if number % 2 else ".lora_B.") in name}
        assert all(set(update) == set(before) - still for update in updates)


def test_fedsvd_makes_the_rows_of_a_orthonormal_and_sorts_b() -> None:
    (_, _, _, after), *_ = federated("fedsvd", rounds=1)
    for layer in LAYERS:
        a, b = after[f"{layer}.lora_A.weight"].astype(np.float64), after[f"{layer}.lora_B.weight"].astype(np.float64)
        np.testing.assert_allclose(a @ a.T, np.eye(RANK), atol=1e-6)
        values = np.linalg.svd(b @ a, compute_uv=False)[:RANK]
        np.testing.assert_allclose(np.linalg.norm(b, axis=0), values, rtol=1e-5)


def test_fedsvd_leaves_an_untrained_layer_alone() -> None:
    rng = np.random.default_rng(0)
    sent = adapter(rng)
    layer = "enc.0.query"
    sent[f"{layer}.lora_B.weight"] *= 0
    updates = [{name: array for name, array in sent.items() if ".lora_A." not in name}] * 3
    after = one_round("fedsvd", 1, sent, updates)
    assert (after[f"{layer}.lora_A.weight"] == sent[f"{layer}.lora_A.weight"]).all()
    assert np.abs(after["enc.1.dense.lora_A.weight"] - sent["enc.1.dense.lora_A.weight"]).max() > 0.01


def test_fedex_goes_on_from_the_means_and_flora_from_nothing() -> None:
    (_, _, updates, after), *_ = federated("fedex", rounds=1)
    for name in (name for name in after if "lora_" in name):
        mean = sum(weight * update[name].astype(np.float64) for weight, update in zip(WEIGHTS, updates, strict=True))
        np.testing.assert_allclose(after[name], mean, atol=1e-6)
    first, second = (after for *_, after in federated("flora", rounds=2))
    for layer, (_, d_in) in LAYERS.items():
        a = first[f"{layer}.lora_A.weight"]
        assert not first[f"{layer}.lora_B.weight"].any()
        assert np.abs(a).max() <= 1 / np.sqrt(d_in) and a.std() == pytest.approx(1 / np.sqrt(3 * d_in), rel=0.4)
        assert (a != second[f"{layer}.lora_A.weight"]).any()
    assert all((first[name] == array).all() for name, array in federated("flora", rounds=1)[0][-1].items())  # drawn from the seed


@pytest.mark.parametrize("rule", ["fedex", "flora"])
def test_a_residual_never_has_more_columns_than_the_layer_has_dimensions(rule: Aggregation) -> None:
    *_, (_, _, _, after) = federated(rule, rounds=6)
    for layer, shape in LAYERS.items():
        assert after[f"{layer}.residual_B.weight"].shape == (shape[0], min(shape))
        assert after[f"{layer}.residual_A.weight"].shape == (min(shape), shape[1])


def test_flexlora_is_the_best_approximation_of_its_rank() -> None:
    """Eckart and Young: the error is what the singular values beyond r hold."""
    (_, _, updates, after), *_ = federated("flexlora", rounds=1)
    for layer in LAYERS:
        mean = sum(weight * dense(update, layer) for weight, update in zip(WEIGHTS, updates, strict=True))
        lost = np.sqrt(np.square(np.linalg.svd(mean, compute_uv=False)[RANK:]).sum())
        assert np.linalg.norm(dense(after, layer) - mean) == pytest.approx(lost, rel=1e-5)
        first = {
            f"{layer}.lora_B.weight": after[f"{layer}.lora_B.weight"][:, :1],
            f"{layer}.lora_A.weight": after[f"{layer}.lora_A.weight"][:1],
        }
        u, s, vt = np.linalg.svd(mean)
        np.testing.assert_allclose(dense(first, layer), s[0] * np.outer(u[:, 0], vt[0]), atol=1e-5)  # a site of rank 1 has its best


def test_flexlora_is_exact_where_the_rank_suffices() -> None:
    rng = np.random.default_rng(5)
    updates = [adapter(rng) for _ in WEIGHTS]
    for number, update in enumerate(updates):  # three sites of rank 1: their mean has rank 3
        for name in update:
            kept = np.zeros_like(update[name])
            where = (slice(number, number + 1), slice(None)) if ".lora_A." in name else (slice(None), slice(number, number + 1))
            kept[where] = update[name][where]
            update[name] = kept if "lora_" in name else update[name]
    after = one_round("flexlora", 1, adapter(rng), updates)
    assert aggregation_error({}, updates, WEIGHTS, after, {}) < 1e-6


@pytest.mark.parametrize("rule", RULES)
def test_a_reply_with_other_tensors_than_the_round_trains_is_refused(rule: Aggregation) -> None:
    rng = np.random.default_rng(1)
    sent = adapter(rng, core=rule == "fedsb")
    names = [name for name in trained_in(rule, 2, sent) if name != HEAD]
    with pytest.raises(FedethosError, match="AGG-740"):
        one_round(rule, 2, sent, [{name: sent[name] for name in names}] * 3)


def test_what_trains_follows_from_rule_and_round() -> None:
    names = [*adapter(np.random.default_rng(0)), "enc.0.query.residual_A.weight", "enc.0.query.residual_B.weight"]
    without_a = sorted(name for name in names if "_A." not in name and not is_residual(name))
    without_b = sorted(name for name in names if "_B." not in name and not is_residual(name))
    assert [trained_in("rolora", number, names) for number in (1, 2, 3)] == [without_a, without_b, without_a]
    assert trained_in("fedsvd", 8, names) == ever_trained("ffa", names) == without_a
    assert ever_trained("rolora", names) == trained_in("fedex", 1, names) == sorted(set(without_a) | set(without_b))


def test_low_rank_algebra_equals_dense_algebra() -> None:
    rng = np.random.default_rng(2)
    one, two = (Product(rng.normal(size=(6, 2)), rng.normal(size=(2, 8))) for _ in range(2))
    total = added([one, two, one.times(-2.0)])
    truth = two.b @ two.a - one.b @ one.a
    assert frobenius(total) == pytest.approx(np.linalg.norm(truth), rel=1e-12)
    small = compressed(total)
    assert small.rank == 4 == np.linalg.matrix_rank(truth)  # six columns were two too many
    np.testing.assert_allclose(small.dense(), truth, atol=1e-12)
    assert frobenius(added([one, one.times(-1.0)])) < 1e-14
    padded = with_orthonormal_a(one, 7)
    assert padded.b.shape == (6, 7) and padded.a.shape == (7, 8)
    np.testing.assert_allclose(padded.dense(), one.dense(), atol=1e-12)
