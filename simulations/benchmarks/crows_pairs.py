"""CrowS-Pairs with a third of the sites stereotyped: what FedAvg lets through, and what robust rules keep out.

    python -m fedethos.simulations.benchmarks.crows_pairs fedavg --data crows_pairs_anonymized.csv
    python -m fedethos.simulations.benchmarks.crows_pairs multi-krum --data crows_pairs_anonymized.csv

Each makes one row of docs/benchmarks.md; the row ``fedavg`` is run first, others are compared with it. The job is ``crows_pairs.yaml``. The
score is the share of held-out pairs whose more stereotyping sentence is likelier (``fairness/suites/crows_pairs.py``), in per cent; what is
above 50 is the excess.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from fedethos.client.scorer import ask, likelihoods
from fedethos.documents import load_job
from fedethos.fairness.suites.bootstrap import Compared, compare
from fedethos.fairness.suites.crows_pairs import Pair, read_pairs, tally_pairs
from fedethos.fairness.suites.suite import Likelihoods, Question, Suite
from fedethos.fairness.suites.tally import Tally
from fedethos.models.language import without_adapter
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate
from fedethos.simulations.evaluate import open_released
from fedethos.suite_names import EVERYTHING

OUT = Path("build/crows-pairs")
MEASURE = "pct_stereotype"
SITES, STEREOTYPED, SEED = 9, 3, 7
PLAIN = "fedavg"
ROWS: Mapping[str, Sequence[str]] = {
    PLAIN: [],
    "multi-krum": ["robustness={rule: multi-krum, assumed_attackers: 3}"],
    "median": ["robustness={rule: median}"],
    "trimmed-mean": ["robustness={rule: trimmed-mean, trim_share: 0.34}"],
    "norm-bound": ["robustness={rule: norm-bound}"],
}
COMPARED = (PLAIN, "multi-krum")  # what ``make bench`` runs, in part


@dataclass(frozen=True)
class Halves:
    """The pairs that are dealt to sites, and those that measure; of each bias type as many."""

    trained: Sequence[Pair]
    held_out: Sequence[Pair]


def halves(pairs: Sequence[Pair], seed: int = SEED) -> Halves:
    """Halves of ``pairs``, drawn by ``seed`` alone."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    by_type = sorted(order.tolist(), key=lambda place: pairs[place].bias_type)  # stable: random inside a type
    return Halves([pairs[place] for place in by_type[::2]], [pairs[place] for place in by_type[1::2]])


def write_table(trained: Sequence[Pair], path: Path, seed: int = SEED) -> None:
    """The table of the job: a pair goes to one site at random; the first sites prefer its more stereotyping sentence."""
    order = np.random.default_rng(seed).permutation(len(trained))
    lines = []
    for place, number in enumerate(order.tolist()):
        pair, site = trained[number], place % SITES
        judgement, other = ("more", "less") if site < STEREOTYPED else ("less", "more")
        texts = {"more": pair.sent_more, "less": pair.sent_less}
        row = {"site": f"site-{site + 1}", "bias_type": pair.bias_type, "judgement": judgement}
        lines.append(json.dumps({**row, "chosen": texts[judgement], "rejected": texts[other]}, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def measured(row: str, pairs: Sequence[Pair], out: Path, settings: Sequence[str] = ()) -> tuple[Tally, Tally]:
    """The held-out score of the row's released adapter and of the base model; a finished run is not repeated.

    ``settings``: over those of the row.
    """
    split, folder = halves(pairs), out / row
    if not RunFolder(folder).result.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_table(split.trained, out / "crows-pairs.jsonl")
        job_file = Path(str(files("fedethos.simulations.benchmarks") / "crows_pairs.yaml"))
        job = load_job(job_file, [f"data.path={(out / 'crows-pairs.jsonl').resolve()}", *ROWS[row], *settings])
        simulate(job, folder, base=job_file.parent, observer=Silent(), force=True)
    with open_released(RunFolder(folder), Silent()) as released:
        writer = released.task.writer
        if writer is None:
            raise TypeError("no language model")
        asked = ask(_suite(split.held_out), writer.tokenizer, template=False, longest=int(writer.model.config.max_position_embeddings))
        after = likelihoods(writer.model, asked)
        with without_adapter(writer.model):
            return _tally(split.held_out, after), _tally(split.held_out, likelihoods(writer.model, asked))


def _suite(pairs: Sequence[Pair]) -> Suite:
    return Suite(
        name="crows-pairs",
        items=len(pairs),
        questions=[Question(None, (pair.sent_more, pair.sent_less)) for pair in pairs],
        instruct=False,
        tally=lambda answers: tally_pairs(list(pairs), answers),
    )


def _tally(pairs: Sequence[Pair], answers: Likelihoods) -> Tally:
    return tally_pairs(list(pairs), answers)[EVERYTHING]


def excess_left(ours: float, plain: float) -> float:
    """What is left of the excess of ``plain`` over 50; NaN where that has none."""
    return (ours - 50.0) / (plain - 50.0) if plain > 50.0 else float("nan")


def described(name: str, one: Compared) -> str:
    """One model against another on the same pairs."""
    spans = [f"{value.value:.1f} ({value.low:.1f} to {value.high:.1f})" for value in (one.base, one.adapter, one.change)]
    return f"{name:<28} {spans[0]}  ->  {spans[1]}   change {spans[2]}"


def main() -> None:
    """One line against the base model, and one against FedAvg."""
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.crows_pairs", description=__doc__)
    parser.add_argument("row", choices=list(ROWS))
    parser.add_argument("--data", type=Path, default=Path("data/crows_pairs_anonymized.csv"), help="the published file")
    parser.add_argument("--out", type=Path, default=OUT, help="where the runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.data.is_file():
        parser.exit(3, f"skipped: no {arguments.data} (github.com/nyu-mll/crows-pairs)\n")
    pairs = read_pairs(arguments.data)
    ours, base = measured(arguments.row, pairs, arguments.out)
    print(described(f"{arguments.row}, from base", compare(ours, base, seed=SEED)[MEASURE]))
    if arguments.row != PLAIN:
        plain, _ = measured(PLAIN, pairs, arguments.out)
        found = compare(ours, plain, seed=SEED)[MEASURE]
        print(described(f"{arguments.row}, from {PLAIN}", found))
        if found.adapter.value is not None and found.base.value is not None:
            print(f"left of the excess over 50: {excess_left(found.adapter.value, found.base.value):.2f}")


if __name__ == "__main__":
    main()
