"""What private jobs of small sites do by default (A frozen, head warm-up, centred head) beside FedAvg, on 3,000 records at epsilon 3 and 1.

Beside them the default without a centred head (``training.center_head``), and FedAvg with one.

Adult sentences on MiniLM, adapters on its last layer, six sites of about 500 training records. All variants see the same
records, start and seeds (paired). Each is given the same three learning rates on two seeds, and runs with its best one on fresh
seeds. Sites, rounds, noise and the trainer are those of a run; messages, ledger and checkpoints are left out. The metric is exact
(all test people), as only a simulation can see it.

The table of docs/benchmarks.md: ``python -m fedethos.simulations.benchmarks.small_data``. ``make bench`` runs ``rows``, a small part.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ttest_1samp

from fedethos.aggregation import HEAD_CENTER, trained_in
from fedethos.client.head_center import head_inputs
from fedethos.client.head_warmup import head_first
from fedethos.client.node import Node, clipping_engine
from fedethos.client.trainer import StepPlan, train_round
from fedethos.documents import load_job
from fedethos.job import Job
from fedethos.messages import Arrays
from fedethos.privacy.center import center_noise_multiplier, noisy_mean
from fedethos.privacy.events import CENTER
from fedethos.privacy.planner import training_noise
from fedethos.progress import Silent
from fedethos.server.measure import decision_edge, describe
from fedethos.simulations.benchmarks.row import Row, compared
from fedethos.simulations.oracle import Oracle
from fedethos.simulations.virtual_sites import Federation, open_federation
from fedethos.strategies.averaging import weighted_mean

ROUNDS = 5
EPSILONS = (3.0, 1.0)
SCALES = (1.0, 2.5, 6.0)  # times the demo's learning rates
TUNING_SEEDS = (101, 102)
_SETTING = (
    "data.text='{age}, {education}, {marital_status}, {occupation}, {hours_per_week} hours'",
    "data.limit=0.1024",
    "data.split={train: 0.6, validation: 0.08, test: 0.32}",
    "simulation.sites=6",
    "simulation.partition={kind: iid}",
    f"federation.rounds={ROUNDS}",
    "training.local_steps=6",
    "training.batch_size=32",
)


@dataclass(frozen=True)
class Variant:
    """A recipe: what it changes in the job."""

    name: str
    aggregation: str
    head_warmup_rounds: int = 0
    center_head: str = "off"


Wanted = tuple[Variant, float, float]  # variant, epsilon, scale of the learning rates

PLAIN = Variant("fedavg", "fedavg")
DEFAULT = Variant("ffa, warm-up, centre", "ffa", head_warmup_rounds=2, center_head="on")
VARIANTS = (
    PLAIN,
    DEFAULT,
    Variant("ffa, warm-up", "ffa", head_warmup_rounds=2),
    Variant("fedavg, centre", "fedavg", center_head="on"),
)


@dataclass(frozen=True)
class Outcome:
    """One run: exact values over all test people."""

    variant: str
    epsilon: float
    seed: int
    scale: float
    roc_auc: float
    balanced_accuracy: float


def job_of(seed: int, variant: Variant = PLAIN, epsilon: float = 3.0, scale: float = 1.0) -> Job:
    """The benchmark's job."""
    demo = Path(str(files("fedethos.simulations.jobs") / "adult.yaml"))
    rates = load_job(demo).training
    return load_job(
        demo,
        [
            *_SETTING,
            f"simulation.seed={seed}",
            f"privacy.epsilon={epsilon}",
            f"federation.aggregation={variant.aggregation}",
            f"training.head_warmup_rounds={variant.head_warmup_rounds}",
            f"training.center_head={variant.center_head}",
            f"training.learning_rate={rates.learning_rate * scale}",
            f"training.head_learning_rate={(rates.head_learning_rate or rates.learning_rate) * scale}",
        ],
    )


@contextmanager
def opened(job: Job, base: Path = Path()) -> Iterator[Federation]:
    """Sites, model and cached prefix, once for all the variants of a seed. ``job`` trains every adapter tensor (fedavg)."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        open_federation(job, base=base, scratch=Path(scratch), ledger=Path(scratch) / "ledger.sqlite", observer=Silent()) as federation,
    ):
        yield federation


def train(federation: Federation, start: Arrays, job: Job) -> Arrays:
    """The rounds of ``job`` from ``start`` (all adapter tensors): the adapter that a run of the job ends with.

    The federation's job differs from this one at most in what is trained and how, not in records or model.
    """
    nodes = [replace(node, job=job) for node in federation.nodes.values()]
    noise = {size: training_noise(job, declared_size=size) for size in {node.declared_size for node in nodes}}
    shares = [federation.sites[node_id].share for node_id in federation.nodes]
    arrays = {**start, **(weighted_mean([_center(node, start) for node in nodes], shares) if job.center_head else {})}
    for round in range(1, job.federation.rounds + 1):
        updates = [_update(node, round, arrays, noise[node.declared_size]) for node in nodes]
        arrays |= weighted_mean(updates, shares)
    return arrays


def _center(node: Node, arrays: Arrays) -> Arrays:
    """A site's private mean of what the head reads; nothing where the model or the job has none."""
    center, noise_multiplier = node.model.center, center_noise_multiplier(node.job)
    if center is None or noise_multiplier is None:
        return {}
    node.model.load(arrays)
    examples = node.examples["train"]
    mean = noisy_mean(
        head_inputs(node.model, center, examples, tokens=node.job.training.micro_batch_tokens),
        examples.unit,
        reference=arrays[HEAD_CENTER].astype(np.float64),
        bound=center.bound,
        declared_size=node.declared_size,
        noise_multiplier=noise_multiplier,
        source=node.source_of(CENTER, 0),
    )
    return {HEAD_CENTER: mean}


def _update(node: Node, round: int, arrays: Arrays, noise_multiplier: float) -> Arrays:
    node.model.load(arrays)
    plan = StepPlan.of(node.job, declared_size=node.declared_size, noise_multiplier=noise_multiplier)
    engine = clipping_engine(node.job, node.job.privacy.max_grad_norm)
    names = trained_in(node.job.aggregation, round, node.model.exchanged_names)
    with node.model.training(head_first(names, round, warmup_rounds=node.job.head_warmup_rounds)):
        train_round(node.model, node.examples["train"], node.job.training, plan, engine, lambda step: node.source_of(round, step))
    return node.model.read(names)


def measured(seed: int, wanted: Iterable[Wanted]) -> Iterator[Outcome]:
    """Run each wanted (variant, epsilon, scale) on the records and seeds of ``seed``."""
    ordered = sorted(wanted, key=lambda one: one[0].center_head)  # one model has a centre, one has none
    for center_head, group in groupby(ordered, key=lambda one: one[0].center_head):
        yield from _measured(seed, Variant("", "fedavg", center_head=center_head), list(group))


def _measured(seed: int, whole: Variant, wanted: Sequence[Wanted]) -> Iterator[Outcome]:
    with opened(job_of(seed, whole)) as federation:
        start, oracle = federation.model.read(), Oracle({federation.sites[number].name: node for number, node in federation.nodes.items()})
        for variant, epsilon, scale in wanted:
            job = job_of(seed, variant, epsilon, scale)
            arrays = train(federation, start, job)
            edge = decision_edge(oracle(arrays, "validation", ROUNDS).tables, job)
            metrics = describe(oracle(arrays, "test", ROUNDS), edge, job).plain()["metrics"]
            values = {name: float(str(metrics[name])) for name in ("roc_auc", "balanced_accuracy")}
            yield Outcome(variant.name, epsilon, seed, scale, **values)


def best_scales(tuned: Sequence[Outcome]) -> dict[tuple[str, float], float]:
    """(variant, epsilon) -> the scale with the highest mean AUC over the tuning seeds."""
    aucs: dict[tuple[str, float], dict[float, list[float]]] = {}
    for outcome in tuned:
        aucs.setdefault((outcome.variant, outcome.epsilon), {}).setdefault(outcome.scale, []).append(outcome.roc_auc)
    return {key: max(by_scale, key=lambda scale: statistics.mean(by_scale[scale])) for key, by_scale in aucs.items()}


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Lines of a markdown table: means, and the paired gain in AUC over fedavg with its 95 % t-interval."""
    yield f"| epsilon | variant | learning rates × | pairs | AUC | balanced accuracy | AUC above {PLAIN.name} (95 %) |"
    yield "|---|---|---|---|---|---|---|"
    for epsilon in sorted({outcome.epsilon for outcome in outcomes}, reverse=True):
        here = [outcome for outcome in outcomes if outcome.epsilon == epsilon]
        for name in dict.fromkeys(outcome.variant for outcome in here):
            ours = [outcome for outcome in here if outcome.variant == name]
            auc, balanced = (statistics.mean(getattr(outcome, key) for outcome in ours) for key in ("roc_auc", "balanced_accuracy"))
            gain = "" if name == PLAIN.name else _interval(_gains(ours, here, PLAIN.name))
            yield f"| {epsilon:g} | {name} | {ours[0].scale:g} | {len(ours)} | {auc:.3f} | {balanced:.3f} | {gain} |"


def _gains(ours: Sequence[Outcome], everybody: Sequence[Outcome], reference: str) -> list[float]:
    theirs = {outcome.seed: outcome.roc_auc for outcome in everybody if outcome.variant == reference}
    return [outcome.roc_auc - theirs[outcome.seed] for outcome in ours if outcome.seed in theirs]


def _interval(gains: Sequence[float]) -> str:
    if len(gains) < 2:
        return ""
    bounds = ttest_1samp(gains, 0.0).confidence_interval(0.95)
    return f"{statistics.mean(gains):+.3f} ({bounds.low:+.3f} to {bounds.high:+.3f})"


def rows() -> list[Row]:
    """One seed at epsilon 1 for ``make bench``: shown, not judged, because one pair says little."""
    torch.set_num_threads(1)
    low, middle, high = SCALES
    scales = (middle, low, high, low)  # what the tuning seeds chose, see the docs
    wanted = [(variant, 1.0, scale) for variant, scale in zip(VARIANTS, scales, strict=True)]
    found = {outcome.variant: outcome for outcome in measured(1, wanted)}
    plain, *others = (found[variant.name] for variant in VARIANTS)
    return [compared("small-data", f"auc_over_{PLAIN.name}_epsilon_1/{other.variant}", other.roc_auc, plain.roc_auc) for other in others]


def main() -> None:
    """Tune, run, print the table. Runs that already stand in ``--out`` are not repeated."""
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.small_data", description=__doc__)
    parser.add_argument("--pairs", type=int, default=10, help="fresh seeds")
    parser.add_argument("--seed-start", type=int, default=1, help="first fresh seed")
    parser.add_argument("--out", type=Path, default=Path("build/small-data.jsonl"), help="one line a run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid = [(variant, epsilon, scale) for epsilon in EPSILONS for variant in VARIANTS for scale in SCALES]
    scales = best_scales([outcome for seed in TUNING_SEEDS for outcome in _completed(seed, grid, arguments.out)])
    chosen = [(variant, epsilon, scales[variant.name, epsilon]) for epsilon in EPSILONS for variant in VARIANTS]
    found = [
        outcome
        for seed in range(arguments.seed_start, arguments.seed_start + arguments.pairs)
        for outcome in _completed(seed, chosen, arguments.out)
    ]
    print(*table(found), sep="\n")


def _completed(seed: int, wanted: Sequence[Wanted], where: Path) -> list[Outcome]:
    """The wanted runs of ``seed``; those that the file does not hold yet are made and added to it."""
    where.parent.mkdir(parents=True, exist_ok=True)
    where.touch()
    known = [Outcome(**json.loads(line)) for line in where.read_text("utf-8").splitlines()]
    held = {(one.variant, one.epsilon, one.scale): one for one in known if one.seed == seed}
    missing = [(variant, epsilon, scale) for variant, epsilon, scale in wanted if (variant.name, epsilon, scale) not in held]
    with where.open("a", encoding="utf-8") as file:
        for outcome in measured(seed, missing) if missing else ():
            print(json.dumps(asdict(outcome)), file=file, flush=True)
            held[outcome.variant, outcome.epsilon, outcome.scale] = outcome
    return [held[variant.name, epsilon, scale] for variant, epsilon, scale in wanted]


if __name__ == "__main__":
    main()
