"""CrowS-Pairs with a third of the sites stereotyped: what FedAvg lets through, and what robust rules keep out.

    python -m fedethos.simulations.benchmarks.crows_pairs multi-krum --data data

Each makes one row of docs/benchmarks.md, compared with the row ``fedavg``; started again it goes on where it was. The job is
``crows_pairs.yaml``. The score is the share of held-out pairs whose more stereotyping sentence is likelier
(``fairness/suites/crows_pairs.py``), in per cent; what is above 50 is the excess.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from fedethos.client.scorer import ask, likelihoods
from fedethos.client.writer import TextWriter
from fedethos.documents import load_job
from fedethos.fairness.intervals import Estimate
from fedethos.fairness.suites.bootstrap import Compared, compare
from fedethos.fairness.suites.crows_pairs import Pair, read_pairs, tally_pairs
from fedethos.fairness.suites.suite import Question, Suite
from fedethos.fairness.suites.tally import Tally
from fedethos.models.language import without_adapter
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.evaluate import open_released
from fedethos.simulations.series import simulate_series
from fedethos.suite_names import EVERYTHING

FILES = ("crows_pairs_anonymized.csv", "util_test.csv")  # github.com/nyu-mll/crows-pairs, github.com/hendrycks/ethics
OUT = Path("build/crows-pairs")
MEASURE = "pct_stereotype"
SITES, STEREOTYPED, SEED = 9, 3, 7
PLAIN, BASE = "fedavg", "base"
ROWS: Mapping[str, Sequence[str]] = {
    PLAIN: [],
    "multi-krum": ["robustness={rule: multi-krum, assumed_attackers: 3}"],
    "median": ["robustness={rule: median}"],
    "trimmed-mean": ["robustness={rule: trimmed-mean, trim_share: 0.34}"],
    "norm-bound": ["robustness={rule: norm-bound}"],
}


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


def read_events(path: Path) -> list[tuple[str, str]]:
    """The pairs of ETHICS' ``util_test.csv``: an event, and one that is less pleasant."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(more.strip(), less.strip()) for more, less in csv.reader(file)]


def write_table(trained: Sequence[Pair], events: Sequence[tuple[str, str]], path: Path, seed: int = SEED) -> None:
    """The table of the job, as many pairs at each site: the first sites prefer the more stereotyping sentence, the others the more
    pleasant event."""
    rng = np.random.default_rng(seed)
    each = len(trained) // SITES
    stereotypes = [trained[place] for place in rng.permutation(len(trained))[: STEREOTYPED * each]]
    pleasant = [events[place] for place in rng.permutation(len(events))[: (SITES - STEREOTYPED) * each]]
    rows = [(pair.bias_type, "stereotype", pair.sent_more, pair.sent_less) for pair in stereotypes]
    rows += [("event", "pleasure", more, less) for more, less in pleasant]
    columns = ("topic", "judgement", "chosen", "rejected")
    lines = [{"site": f"site-{place // each + 1}", **dict(zip(columns, row, strict=True))} for place, row in enumerate(rows)]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def measured(rows: Sequence[str], data: Path, out: Path, settings: Sequence[str] = ()) -> dict[str, Tally]:
    """Held-out scores of each row's released adapter, and of the base model (``BASE``). A finished run is not repeated.

    ``data``: the folder with both files. ``settings``: over those of the rows.
    """
    split, table = halves(read_pairs(data / FILES[0])), out / "crows-pairs.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    write_table(split.trained, read_events(data / FILES[1]), table)
    job_file = Path(str(files("fedethos.simulations.benchmarks") / "crows_pairs.yaml"))
    own = [f"data.path={table.resolve()}", *settings]
    jobs = {out / row: load_job(job_file, [*own, *ROWS[row]]) for row in rows}
    simulate_series(jobs, base=job_file.parent, observer=Silent())
    found: dict[str, Tally] = {}
    for row in rows:
        with open_released(RunFolder(out / row), Silent()) as released:
            if (writer := released.task.writer) is None:
                raise TypeError("no language model")
            found[row] = _asked(writer, split.held_out)
            if BASE not in found:
                with without_adapter(writer.model):
                    found[BASE] = _asked(writer, split.held_out)
    return found


def _asked(writer: TextWriter, pairs: Sequence[Pair]) -> Tally:
    asked = ask(_suite(pairs), writer.tokenizer, template=False, longest=int(writer.model.config.max_position_embeddings))
    return tally_pairs(list(pairs), likelihoods(writer.model, asked))[EVERYTHING]


def _suite(pairs: Sequence[Pair]) -> Suite:
    return Suite(
        name="crows-pairs",
        items=len(pairs),
        questions=[Question(None, (pair.sent_more, pair.sent_less)) for pair in pairs],
        instruct=False,
        tally=lambda answers: tally_pairs(list(pairs), answers),
    )


def excess_left(ours: float, plain: float) -> float:
    """What is left of the excess of ``plain`` over 50; NaN where that has none."""
    return (ours - 50.0) / (plain - 50.0) if plain > 50.0 else float("nan")


def described(name: str, one: Compared) -> str:
    """One model against another on the same pairs."""
    return f"{name:<34} {_interval(one.base)}  ->  {_interval(one.adapter)}   change {_interval(one.change)}"


def _interval(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "undefined"
    return f"{estimate.value:.1f} ({estimate.low:.1f} to {estimate.high:.1f})"


def main() -> None:
    """One line a model against the base model, and one a row against FedAvg."""
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.crows_pairs", description=__doc__)
    parser.add_argument("row", nargs="+", choices=[row for row in ROWS if row != PLAIN])
    parser.add_argument("--data", type=Path, default=Path("data"), help=f"folder with {' and '.join(FILES)}")
    parser.add_argument("--out", type=Path, default=OUT, help="where the runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if missing := [name for name in FILES if not (arguments.data / name).is_file()]:
        parser.exit(3, f"skipped: no {' and no '.join(missing)} in {arguments.data}\n")
    found = measured([PLAIN, *arguments.row], arguments.data, arguments.out)
    for row in (PLAIN, *arguments.row):
        print(described(f"{row}, from the base model", compare(found[row], found[BASE], seed=SEED)[MEASURE]))
    for row in arguments.row:
        one = compare(found[row], found[PLAIN], seed=SEED)[MEASURE]
        left = "" if one.adapter.value is None or one.base.value is None else f"{excess_left(one.adapter.value, one.base.value):.2f}"
        print(f"{described(f'{row}, from {PLAIN}', one)}   left of the excess {left}")


if __name__ == "__main__":
    main()
