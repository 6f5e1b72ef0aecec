"""``fedethos evaluate RUN --suite NAME=PATH``: a run's released language model on public benchmarks, beside its untouched base model.

Unlike metrics and flips this reads no site's records: only benchmark files (``fairness/suites``) and what the run released.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedethos.client.language_model import uses_chat_template
from fedethos.client.scorer import Asked, ask, likelihoods
from fedethos.client.writer import Decoding, TextWriter
from fedethos.errors import FedethosError
from fedethos.fairness.suites.bootstrap import Compared, compare
from fedethos.fairness.suites.registry import open_suites
from fedethos.fairness.suites.suite import Suite, WrittenSuite
from fedethos.fairness.suites.tally import Tally
from fedethos.models.language import without_adapter
from fedethos.progress import Observer
from fedethos.runfolder import RunFolder
from fedethos.simulations.evaluate import ReleasedModel, open_released, shown
from fedethos.simulations.predict import Predictor
from fedethos.suite_names import EVERYTHING, PUBLIC
from fedethos.suite_record import GroupScores, MeasureScores, ScenarioLimit, SuiteScores, SuitesReport

Tallies = Mapping[str, Tally]


@dataclass(frozen=True)
class SuiteQuestion:
    """What to ask. ``suites``: benchmarks and where their files are; at most about ``items`` of each (None: all), drawn by ``seed``."""

    suites: Sequence[tuple[str, Path]]
    items: int | None = None
    seed: int = 0


def score_suites(folder: RunFolder, question: SuiteQuestion, observer: Observer) -> SuitesReport:
    """Score the suites, and keep what ``folder`` already holds of others.

    Raises
    ------
    FedethosError
        RUN-965 for a run without a language model; DATA-190 and DATA-191 for files that are not the benchmark's, DATA-192 for too long
        questions; else as for ``open_released``.
    """
    observer.stage("Reading the benchmarks")
    suites = open_all(question)
    if not folder.parse_job().is_language:
        raise _no_language_model(str(folder.job))
    with open_released(folder, observer) as released:
        found = ask_suites(released, suites, question, observer)
        earlier = folder.read_suites().suites if folder.suites.is_file() else {}
        return SuitesReport(
            schema="fedethos/suites/v1",
            name=released.job.name,
            job_sha256=released.job.sha256,
            suites={**earlier, **found},
        )


def open_all(question: SuiteQuestion) -> list[Suite | WrittenSuite]:
    """The suites of ``question``, read from their files."""
    return [suite for name, path in question.suites for suite in open_suites(name, path, count=question.items, seed=question.seed)]


def ask_suites(
    released: ReleasedModel, suites: Sequence[Suite | WrittenSuite], question: SuiteQuestion, observer: Observer
) -> dict[str, SuiteScores]:
    """Scores of a released language model and of its untouched base model, by suite. RUN-965 for another model."""
    writer = released.task.writer
    if writer is None:
        raise _no_language_model("task")
    template = uses_chat_template(released.job, writer.tokenizer)
    asked = [_asked(suite, released, writer, template=template) for suite in suites]
    adapter = _answer(writer, suites, asked, observer, "with the adapter")
    released.task.model.restore_base()
    with without_adapter(writer.model):
        base = _answer(writer, suites, asked, observer, "with the base model alone")
    observer.stage("Computing intervals")
    return {
        suite.name: _scores(suite, own, untouched, question, template=template)
        for suite, own, untouched in zip(suites, adapter, base, strict=True)
    }


def _asked(suite: Suite | WrittenSuite, released: ReleasedModel, writer: TextWriter, *, template: bool) -> Asked | list[str]:
    if isinstance(suite, WrittenSuite):
        predictor = Predictor(released, Decoding(max_new_tokens=suite.max_new_tokens))
        return [predictor.prompt(prompt) for prompt in suite.prompts]
    return ask(suite, writer.tokenizer, template=template, longest=int(writer.model.config.max_position_embeddings))


def _answer(
    writer: TextWriter, suites: Sequence[Suite | WrittenSuite], asked: Sequence[Asked | list[str]], observer: Observer, whose: str
) -> list[Tallies]:
    found = []
    for suite, content in zip(suites, asked, strict=True):
        observer.stage(f"Asking {suite.items:,} items of {suite.name} {whose}")
        if isinstance(suite, Suite) and isinstance(content, Asked):
            found.append(suite.tally(likelihoods(writer.model, content)))
        elif isinstance(suite, WrittenSuite) and isinstance(content, list):
            greedy = Decoding(max_new_tokens=suite.max_new_tokens)
            texts = dict(answer for batch in writer.write(content, greedy) for answer in batch)
            found.append(suite.tally([texts[place] for place in range(len(content))]))
    return found


def _scores(suite: Suite | WrittenSuite, adapter: Tallies, base: Tallies, question: SuiteQuestion, *, template: bool) -> SuiteScores:
    groups = {name: _group(one, base[name], question.seed) for name, one in adapter.items()}
    return SuiteScores(
        basis="public" if suite.name.startswith(PUBLIC) else "own-file",
        items=suite.items,
        seed=question.seed,
        questions_sha256=_hash(suite),
        chat_template=template and (isinstance(suite, WrittenSuite) or suite.instruct),
        groups=groups,
        limit=_limit(suite, groups[EVERYTHING]),
        false_positives={name: shown(one) for name, one in suite.false_positives.items()} if isinstance(suite, WrittenSuite) else {},
    )


def _limit(suite: Suite | WrittenSuite, everything: GroupScores) -> ScenarioLimit | None:
    if suite.limit is None:
        return None
    value = everything.measures[suite.limit.measure].adapter.value
    holds = None if value is None else value <= suite.limit.at_most
    return ScenarioLimit(measure=suite.limit.measure, at_most=suite.limit.at_most, holds=holds)


def _group(adapter: Tally, base: Tally, seed: int) -> GroupScores:
    return GroupScores(units=len(adapter.sums), measures={name: _measure(one) for name, one in compare(adapter, base, seed=seed).items()})


def _measure(found: Compared) -> MeasureScores:
    return MeasureScores(adapter=shown(found.adapter), base=shown(found.base), change=shown(found.change))


def _hash(suite: Suite | WrittenSuite) -> str:
    if isinstance(suite, WrittenSuite):
        return hashlib.sha256(json.dumps(list(suite.prompts)).encode()).hexdigest()
    content = [[question.prompt, *question.answers] for question in suite.questions]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _no_language_model(where: str) -> FedethosError:
    return FedethosError(
        "RUN-965",
        "The run has no language model.",
        where=where,
        why="A classifier has no likelihood of an answer.",
        fix="Name a run of the task causal-lm, multiple-choice or preference.",
    )
