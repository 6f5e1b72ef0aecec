"""What to look at, in sentences, the gravest first. Bars are conventions that start a conversation, not law.

``hard``: the job's numbers would be wrong (``--strict`` refuses). ``look``: somebody who knows the data should judge. ``note``:
good to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from fedethos.fairness.data_audit.audit import AttributeAudit, DataAudit
from fedethos.fairness.intervals import Estimate

FOUR_FIFTHS = 0.8  # 29 CFR 1607.4(D), for selection rates; here for the rates that a model would learn
STRONG_PROXY = 0.7  # AUC of one column
GIVEN_AWAY = 0.8  # AUC of all columns together
_MISSING_GAP = 0.05
_CHANCE = 0.05  # p-value
_EXCESS = 2.0  # times as many contradicted labels as chance explains

Severity = Literal["hard", "look", "note"]


@dataclass(frozen=True)
class Finding:
    severity: Severity
    about: str
    sentence: str


def findings(audit: DataAudit) -> tuple[Finding, ...]:
    """All findings, hard ones first."""
    found = [*_duplicates(audit), *_identifiers(audit)]
    for attribute, part in audit.attributes.items():
        found += [*_groups(attribute, part, audit), *_base_rate(attribute, part, audit), *_proxies(attribute, part)]
    found += [*_missing(audit), *_label_noise(audit), *_columns(audit)]
    order: tuple[Severity, ...] = ("hard", "look", "note")
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _duplicates(audit: DataAudit) -> Iterator[Finding]:
    copies = audit.duplicates
    if copies.leaked:
        kind = "records" if copies.records.across == copies.leaked else "free texts"
        yield Finding(
            "hard",
            "duplicates",
            f"{copies.leaked:,} validation and test rows are copies of training rows ({kind} that agree entirely): the model would be "
            "tested on what it was trained on. Remove copies before the export.",
        )
    if copies.near and copies.near.found:
        yield Finding(
            "look",
            "duplicates",
            f"{copies.near.found:,} of {copies.near.tested:,} validation and test texts looked at are nearly equal to one of "
            f"{copies.near.trained:,} training texts: templates, or copies with small edits.",
        )
    if sum(copies.records.within):
        yield Finding("note", "duplicates", f"{sum(copies.records.within):,} rows repeat another row of their split in every column.")
    if copies.inputs.across and not copies.leaked:
        yield Finding(
            "note",
            "duplicates",
            f"{copies.inputs.across:,} validation and test rows read the same to the model as a training row. In a table of few columns "
            "these are alike people, not copies.",
        )


def _identifiers(audit: DataAudit) -> Iterator[Finding]:
    for kind in audit.identifiers:
        if kind.rows:
            yield Finding(
                "look",
                "identifiers",
                f"{kind.rows:,} texts of {kind.people:,} people seem to hold a direct identifier ({kind.kind}). Remove it: models learn "
                "such things by heart.",
            )


def _groups(attribute: str, part: AttributeAudit, audit: DataAudit) -> Iterator[Finding]:
    for row in part.groups:
        absent = [label for label, rows in zip(audit.labels, row.rows_by_label, strict=True) if not rows]
        if 0 < row.people < audit.min_people:
            yield Finding("note", attribute, f"{attribute} {row.group} is too small to compare or to release: people: {row.people}.")
        elif row.people and absent:
            named = f"No row of {attribute} {row.group} has the label {' or '.join(absent)}"
            yield Finding("look", attribute, f"{named}: some of its error rates are undefined.")
        if row.representation.high is not None and row.representation.high < FOUR_FIFTHS:
            times = _said(row.representation)
            yield Finding("look", attribute, f"{row.group} is under-represented: {times} times its share of the reference population.")
    unknown = part.groups[-1].people
    if unknown > _MISSING_GAP * audit.people:
        yield Finding("look", attribute, f"{unknown:,} of {audit.people:,} people have no {attribute}: they form the group unknown.")


def _base_rate(attribute: str, part: AttributeAudit, audit: DataAudit) -> Iterator[Finding]:
    rate = part.base_rate
    if rate.ratio.value is not None and rate.ratio.value < FOUR_FIFTHS and rate.p_value is not None and rate.p_value < _CHANCE:
        yield Finding(
            "look",
            attribute,
            f"The label {audit.favorable} is {_said(rate.ratio)} times as frequent in the lowest group of {attribute} as in the highest, "
            "below four fifths: a model that follows these labels selects as unequally.",
        )


def _proxies(attribute: str, part: AttributeAudit) -> Iterator[Finding]:
    if part.proxies is None:
        yield Finding("note", attribute, f"Fewer than two groups of {attribute} have enough people: nothing was compared.")
        return
    if part.proxies.reads_itself:
        yield Finding("look", attribute, f"The model reads {attribute} itself.")
    strong = [
        f"{proxy.column} (AUC {proxy.auc:.2f})" for proxy in part.proxies.columns if proxy.auc >= STRONG_PROXY and not proxy.sensitive
    ]
    if strong:
        yield Finding("look", attribute, f"Proxies: {attribute} can be guessed from {', '.join(strong)}.")
    if part.proxies.together is not None and part.proxies.together >= GIVEN_AWAY:
        blind = "leaving it out does not make a model blind to it"
        yield Finding("look", attribute, f"All columns together give {attribute} away (AUC {part.proxies.together:.2f}): {blind}.")
    if part.words:
        word = part.words[0]
        yield Finding(
            "note",
            attribute,
            f'The word most typical of a group of {attribute} is "{word.word}": {word.share:.0%} of {word.group} use it, {word.rest:.0%} '
            "of the others.",
        )


def _missing(audit: DataAudit) -> Iterator[Finding]:
    for column in audit.missing:
        for attribute, rates in column.by_attribute.items():
            if rates.difference.low is not None and rates.difference.low > _MISSING_GAP:
                gap = _said(rates.difference)
                yield Finding("look", column.column, f"Missing more often in some groups of {attribute}: a difference of {gap}.")


def _label_noise(audit: DataAudit) -> Iterator[Finding]:
    if audit.noise is None:
        return
    for attribute, parts in audit.noise.by_group.items():
        for part in parts:
            if part.contradicted >= audit.min_people and part.contradicted > _EXCESS * part.expected:
                yield Finding(
                    "look",
                    attribute,
                    f"{part.contradicted:,} labels of {attribute} {part.name} contradict everything else that is known; chance explains "
                    f"about {part.expected:.0f}. Check how this group was labelled.",
                )


def _columns(audit: DataAudit) -> Iterator[Finding]:
    if audit.constant:
        yield Finding("note", "columns", f"The same in every row, so the model learns nothing from it: {', '.join(audit.constant)}.")


def _said(item: Estimate) -> str:
    return "not measurable" if item.value is None else f"{item.value:.2f} ({item.low:.2f} to {item.high:.2f})"
