"""A review in words: the same sentences on the terminal and on the page."""

from __future__ import annotations

from dataclasses import dataclass

from fedethos.client.review import Cost, Leaving, Review
from fedethos.escaping import escaped
from fedethos.wording import duration, size

_SHOWN = 3  # names of tensors on the terminal; the page and --json have all
_REPEATED = ("repeated", "a message that got lost is sent again, the same bytes, which tell nothing new and cost nothing")
_NEIGHBOURS = {"add-remove": "added or removed", "replace-one": "replaced"}


@dataclass(frozen=True)
class Part:
    """One part of the page: a title and (label, sentence)."""

    title: str
    rows: tuple[tuple[str, str], ...]


def headline(review: Review) -> str:
    """What a person who reads one sentence should know."""
    asks = f"{review.job_name} asks to train on this site's records, {_times(review.rounds, 'round')}."
    cost = review.cost
    if cost is None:
        return f"{asks} It protects nobody: exact updates and counts leave."
    if cost.refusal:
        return f"{asks} Your privacy budget does not pay for it."
    return f"{asks} It costs each {cost.unit} at most epsilon {cost.whole_run:.2f}; {cost.left_before:.2f} are left. No record leaves."


def parts(review: Review) -> tuple[Part, ...]:
    """Everything that a site decides about, in the order of the questions."""
    rows = {
        "What will run": _running(review),
        "What it reads": review.reads,
        "What leaves, and nothing else": (*((one.what, _leaving(one)) for one in review.leaving), _REPEATED),
        "What it costs": _cost(review.cost),
        "How long": _effort(review),
        "What this site decides (site.yaml)": review.decisions,
    }
    return tuple(Part(title, tuple((_on_one_line(label), _on_one_line(words)) for label, words in own)) for title, own in rows.items())


def _on_one_line(text: str) -> str:
    """A job's own words cannot look like further lines of the review, nor run backwards."""
    return escaped(text, ("Cc", "Cf", "Zl", "Zp"))


def _running(review: Review) -> tuple[tuple[str, str], ...]:
    versions = dict(review.versions)
    personal = (("personal adapter", review.personal),) if review.personal else ()
    return (
        ("job", f"{review.job_name}, SHA-256 {review.job_sha256}"),
        ("code", f"the installed fedethos {versions['fedethos']}, SHA-256 {review.code_sha256}; no code comes with a job or a message"),
        ("base model", f"SHA-256 {review.base_sha256}"),
        ("task", review.task),
        *personal,
        ("libraries", ", ".join(f"{name} {version}" for name, version in review.versions[1:])),
    )


def _leaving(one: Leaving) -> str:
    few = len(one.contents) <= _SHOWN
    shown = ", ".join(one.contents) if few else f"{len(one.contents)} tensors or tables, such as {one.contents[0]}"
    often = "instead of any of these" if one.times == 0 else "once" if one.times == 1 else f"at most {one.times} times"
    return f"{often}, up to {size(one.bytes)}, {one.basis}: {shown}"


def _cost(cost: Cost | None) -> tuple[tuple[str, str], ...]:
    if cost is None:
        return (("epsilon", "none is counted: privacy.mode is none"),)
    rows = [
        ("whole run", f"epsilon {cost.whole_run:.2f} at delta {cost.delta:g}, one {cost.unit} {_NEIGHBOURS[cost.adjacency]}"),
        ("first round", f"epsilon {cost.first_round:.2f}; later rounds add less"),
        ("noise", f"multiplier {cost.noise_multiplier:.2f} in each step of training"),
        ("charged", "in full before the first record is read; stopping early gives nothing back"),
        ("spent before", f"epsilon {cost.spent_before:.2f} of {cost.lifetime_cap:g}; {cost.left_before:.2f} left for further plans"),
        ("caps", f"{cost.per_job_cap:g} a job, {cost.lifetime_cap:g} for ever"),
    ]
    if cost.refusal:
        rows.insert(0, ("refused", cost.refusal))
    return tuple(rows)


def _effort(review: Review) -> tuple[tuple[str, str], ...]:
    whole = f"up to about {duration(review.seconds)}" if review.seconds >= 1 else "less than a second"
    return (
        ("rounds", f"{_times(review.rounds, 'round')} of {_times(review.steps, 'step')}"),
        ("time", f"{whole} of training in all on {review.device}, measured here with made-up records"),
        ("memory", f"about {size(review.memory_bytes)}, the records beside it"),
        ("deadline", f"the coordinator waits {duration(review.deadline_seconds)} for each answer"),
    )


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
