"""BBQ's job on held-out templates: accuracy, both bias scores and perplexity, before and after, without privacy and with epsilon 8.

    python -m fedethos.simulations.benchmarks.bbq open --neutral neutral.txt
    python -m fedethos.simulations.benchmarks.bbq epsilon-8 --neutral neutral.txt

Each makes one row of docs/benchmarks.md; started again it goes on where it was. The job is ``../jobs/bbq-smollm2.yaml``. Values are exact,
of the test records of all sites, whose templates no site trains on; intervals are of the choice of templates
(``fairness/suites/bootstrap.py``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from fedethos.client.evaluator import Predictions
from fedethos.client.scorer import ask, likelihoods
from fedethos.client.writer import TextWriter
from fedethos.data.records import Records
from fedethos.documents import load_job
from fedethos.fairness.intervals import UNDEFINED, Estimate
from fedethos.fairness.suites.bbq import ROLES, Answered, tally_answers
from fedethos.fairness.suites.bootstrap import Compared, compare
from fedethos.fairness.suites.perplexity import perplexity
from fedethos.fairness.suites.suite import Suite
from fedethos.fairness.suites.tally import Tally
from fedethos.job import Job
from fedethos.models.language import without_adapter
from fedethos.progress import Silent
from fedethos.runfolder import RunFolder
from fedethos.simulations.engine import simulate
from fedethos.simulations.evaluate import ReleasedModel, open_released
from fedethos.suite_names import EVERYTHING

OUT = Path("build/bbq")
TABLE = Path("data/bbq.jsonl")
LINES = 300  # of neutral text
_OPEN = (
    *("privacy.mode=none", "privacy.epsilon=null", "federation.rounds=3"),
    f"lora={{r: 16, lora_alpha: 32, target_modules: [q_proj, v_proj], layers_to_transform: {list(range(18, 30))}}}",
    "training={local_steps: 8, batch_size: 16, learning_rate: 2.0e-3, micro_batch_tokens: 2048, anchor: {kl_coef: 8}}",
)
ROWS: Mapping[str, Sequence[str]] = {"open": _OPEN, "epsilon-8": ()}


def job_file() -> Path:
    return Path(str(files("fedethos.simulations.jobs") / "bbq-smollm2.yaml"))


def measured(settings: Sequence[str], out: Path, *, table: Path, neutral: Path | None) -> dict[str, Compared]:
    """Run the job with ``settings`` into ``out``, unless it holds a finished run, and compare the released adapter with the base model."""
    if not RunFolder(out).result.exists():
        job = load_job(job_file(), [f"data.path={table.resolve()}", *settings])
        simulate(job, out, base=job_file().parent, observer=Silent(), force=True)
    with open_released(RunFolder(out), Silent()) as released:
        found = compare(*_held_out(released), seed=0)
        if neutral is not None:
            found |= compare(*_neutral(released, perplexity(neutral, count=LINES)), seed=0)
    return found


def _held_out(released: ReleasedModel) -> tuple[Tally, Tally]:
    """What the adapter and the base model alone answer on the test records of all sites."""
    parts = list(released.records("test").values())
    examples = [released.examples(part) for part in parts]
    after = [released.predict(one) for one in examples]
    with without_adapter(_writer(released).model):
        before = [released.predict(one) for one in examples]
    return _tally(released.job, parts, after), _tally(released.job, parts, before)


def _tally(job: Job, parts: Sequence[Records], predictions: Sequence[Predictions]) -> Tally:
    conditions = job.data.sensitive["condition"]
    answered = [
        Answered(
            condition="ambig" if conditions[condition] == "ambig" else "disambig",
            right=ROLES[label],
            answer=ROLES[answer],
            template=identity.tobytes().hex(),
        )
        for records, predicted in zip(parts, predictions, strict=True)
        for condition, label, answer, identity in zip(
            records.groups["condition"], records.label, predicted.label, records.identity, strict=True
        )
    ]
    return tally_answers(answered)[EVERYTHING]


def _neutral(released: ReleasedModel, suite: Suite) -> tuple[Tally, Tally]:
    writer = _writer(released)
    asked = ask(suite, writer.tokenizer, template=False, longest=int(writer.model.config.max_position_embeddings))
    after = suite.tally(likelihoods(writer.model, asked))[EVERYTHING]
    with without_adapter(writer.model):
        return after, suite.tally(likelihoods(writer.model, asked))[EVERYTHING]


def _writer(released: ReleasedModel) -> TextWriter:
    if released.task.writer is None:
        raise TypeError("no language model")
    return released.task.writer


def perplexity_growth(found: Mapping[str, Compared]) -> Estimate:
    """Perplexity after over perplexity before, minus 1, with its paired interval."""
    change = found["nats_per_token"].change
    if change.value is None or change.low is None or change.high is None:
        return UNDEFINED
    value, low, high = (float(np.expm1(nats)) for nats in (change.value, change.low, change.high))
    return Estimate(value, low, high, abstained=False)


def described(found: Mapping[str, Compared]) -> list[str]:
    """One line a measure: before, after, change, each with its 95 % interval."""
    lines = [
        f"{name:<26} {_interval(one.base)}  ->  {_interval(one.adapter)}   change {_interval(one.change, signed=True)}"
        for name, one in found.items()
        if name != "nats_per_token"
    ]
    return [*lines, f"{'perplexity growth':<26} {_interval(perplexity_growth(found), signed=True)}"] if "perplexity" in found else lines


def _interval(estimate: Estimate, *, signed: bool = False) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "undefined"
    shape = "+.3f" if signed else ".3f"
    return f"{estimate.value:{shape}} ({estimate.low:{shape}} to {estimate.high:{shape}})"


def main() -> None:
    """One line a measure."""
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.benchmarks.bbq", description=__doc__)
    parser.add_argument("row", choices=list(ROWS))
    parser.add_argument("--table", type=Path, default=TABLE, help="what `fedethos data bbq` wrote")
    parser.add_argument("--neutral", type=Path, help=f"a text file, one text a line: perplexity of {LINES} of its lines")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE", help="over the job, as in simulate")
    parser.add_argument("--out", type=Path, default=OUT, help="where the runs are kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table.is_file():
        parser.exit(3, f"skipped: no {arguments.table} (`fedethos data bbq` writes it)\n")
    settings = [*ROWS[arguments.row], *arguments.settings]
    found = measured(settings, arguments.out / arguments.row, table=arguments.table, neutral=arguments.neutral)
    print(arguments.row, *described(found), sep="\n  ")


if __name__ == "__main__":
    main()
