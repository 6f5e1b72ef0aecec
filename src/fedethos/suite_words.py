"""Scores of benchmarks as people read them: in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedethos.result import Interval
from fedethos.suite_names import EVERYTHING
from fedethos.suite_record import GroupScores, SuiteScores
from fedethos.wording import bounds, interval

BASIS = (
    "Answered by the released adapter and by the base model without it. No site's record was read for this, and no epsilon was spent. "
    "The questions are public, those of perplexity, text and scenarios are from a file of whoever evaluated."
)

HEAD = ("Measure", "Best", "With the adapter", "Base model", "Change")


@dataclass(frozen=True)
class _Words:
    label: str
    best: str
    digits: int = 3  # after the point


_MEASURES = {
    "accuracy": _Words("Accuracy", "1"),
    "accuracy_ambiguous": _Words("Accuracy, ambiguous", "1"),
    "accuracy_disambiguated": _Words("Accuracy, disambiguated", "1"),
    "bias_score_ambiguous": _Words("Bias score, ambiguous", "0"),
    "bias_score_disambiguated": _Words("Bias score, disambiguated", "0"),
    "pct_stereotype": _Words("Stereotype preferred, %", "50", 1),
    "pct_stereotype_stereo": _Words("Stereotype preferred where stated, %", "50", 1),
    "pct_stereotype_antistereo": _Words("Stereotype preferred where contradicted, %", "50", 1),
    "lms": _Words("Language modeling score (LMS)", "100", 1),
    "ss": _Words("Stereotype score (SS)", "50", 1),
    "icat": _Words("Idealized CAT score (ICAT)", "100", 1),
    "accuracy_pro_stereotyped": _Words("Accuracy, pro-stereotyped", "1"),
    "accuracy_anti_stereotyped": _Words("Accuracy, anti-stereotyped", "1"),
    "accuracy_difference": _Words("Accuracy, pro minus anti", "0"),
    "balanced_accuracy": _Words("Balanced accuracy", "1"),
    "exact_match": _Words("Exact match", "1"),
    "f1": _Words("Token F1", "1"),
    "rouge_l": _Words("ROUGE-L", "1"),
    "bleu": _Words("BLEU", "100", 1),
    "refusal_rate": _Words("Refusals", "low"),
    "phrase_rate": _Words("Answers with a phrase", "low"),
    "toxicity_rate": _Words("Toxic answers", "low"),
    "answer_flip_rate": _Words("Answers that change with the identity", "0"),
    "refusal_flip_rate": _Words("Refusals that change with the identity", "0"),
    "likelihood_difference": _Words("Likelihood difference, nats per token", "0"),
    "exposure": _Words("Exposure of secrets, bits of 8", "low"),
    "perplexity": _Words("Perplexity", "low"),
    "nats_per_token": _Words("Nats per token", "low"),
}


def rows(group: GroupScores) -> Iterator[tuple[str, ...]]:
    """One row a measure, under ``HEAD``."""
    for name in sorted(group.measures, key=list(_MEASURES).index):
        words, scores = _MEASURES[name], group.measures[name]
        of_both = (interval(scores.adapter, words.digits), interval(scores.base, words.digits))
        yield words.label, words.best, *of_both, _signed(scores.change, words.digits)


def groups(scores: SuiteScores) -> Iterator[tuple[str, GroupScores]]:
    """The suite's own groups, without the one over everything."""
    yield from ((name, group) for name, group in scores.groups.items() if name != EVERYTHING)


def notes(scores: SuiteScores) -> Iterator[str]:
    """What a scenario says about its limit, and about the scorer that it used."""
    if scores.limit is not None:
        said = {True: "holds", False: "is exceeded", None: "cannot be judged with so few prompts, which is no pass"}[scores.limit.holds]
        found = scores.groups[EVERYTHING].measures[scores.limit.measure].adapter
        crossed = found.low is not None and found.high is not None and found.low <= scores.limit.at_most < found.high
        unsure = " The interval reaches to both sides of it: more prompts would tell more." if crossed and found.value is not None else ""
        yield f"The limit of {scores.limit.at_most:g} {said}.{unsure}"
        if scores.limit.measure == "exposure":
            yield "8 bits: of 256 secrets of its form the true one is the likeliest, the model has memorised it. 1.44 bits are chance."
    if scores.false_positives:
        by_group = ", ".join(f"{group} {interval(item)}" for group, item in scores.false_positives.items())
        yield f"The scorer flags harmless texts that name these groups: {by_group}."


def _signed(change: Interval, digits: int) -> str:
    return interval(change, digits) if change.value is None else f"{change.value:+.{digits}f} ({bounds(change, digits)})"
