"""The page of ``fedethos audit-data``: one self-contained HTML file for the site's own eyes (basis ``node-only``).

Drawn from a ``DataAudit`` alone: counts, rates and the names of columns; no value of a record but words that many people use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedethos.fairness.data_audit.audit import AttributeAudit, DataAudit
from fedethos.fairness.data_audit.duplicates import Copies
from fedethos.fairness.data_audit.findings import Finding
from fedethos.fairness.data_audit.label_noise import Contradicted
from fedethos.fairness.data_audit.proxies import Proxies
from fedethos.fairness.data_audit.rates import RateComparison
from fedethos.fairness.data_audit.table import SPLITS
from fedethos.fairness.intervals import Estimate
from fedethos.governance.charts import Chart, Table
from fedethos.governance.data_charts import base_rate_chart, proxy_chart
from fedethos.governance.pages import template

NOTHING = "–"
BANNER = "Node-only: exact numbers about this site's own people. This page must not leave the site."


@dataclass(frozen=True)
class Block:
    """What the page says about one sensitive attribute."""

    attribute: str
    groups: Table
    rates: Chart | None
    rates_note: str
    proxies: Chart | None
    words: Table | None
    lengths: Table | None


def data_report(name: str, source: str, audit: DataAudit, found: Sequence[Finding], *, reference: str | None) -> str:
    """The page as text. ``source``: whose records, in words; ``reference``: where the reference population's shares come from."""
    return template("data_audit.html.j2").render(
        name=name,
        source=source,
        banner=BANNER,
        page_note=BANNER,
        headline=headline(audit, found),
        findings=found,
        size=_size(audit),
        blocks=[_block(place, attribute, part, audit) for place, (attribute, part) in enumerate(audit.attributes.items())],
        reference=reference,
        duplicates=_duplicates(audit),
        near=audit.duplicates.near,
        missing=_missing(audit),
        noise=_noise(audit),
        identifiers=Table(
            ("Kind", "Texts", "People"), tuple((item.kind, f"{item.rows:,}", f"{item.people:,}") for item in audit.identifiers)
        ),
        min_people=audit.min_people,
    )


def headline(audit: DataAudit, found: Sequence[Finding]) -> str:
    hard, look = (sum(finding.severity == severity for finding in found) for severity in ("hard", "look"))
    among = f"in {audit.people:,} people and {audit.rows:,} rows"
    if hard:
        return f"{_times(hard, 'finding')} to settle before training, {look} to look at, {among}"
    return f"{_times(look, 'finding')} to look at {among}"


def said(item: Estimate, digits: int = 3) -> str:
    """``0.310 (0.297 to 0.324)``."""
    if item.value is None or item.low is None or item.high is None:
        return NOTHING
    return f"{item.value:.{digits}f} ({item.low:.{digits}f} to {item.high:.{digits}f})"


def _times(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _size(audit: DataAudit) -> Table:
    rows = zip(SPLITS, audit.people_by_split, audit.rows_by_split, strict=True)
    total = ("all", f"{audit.people:,}", f"{audit.rows:,}")
    return Table(("Split", "People", "Rows"), (*((split, f"{people:,}", f"{count:,}") for split, people, count in rows), total))


def _block(place: int, attribute: str, part: AttributeAudit, audit: DataAudit) -> Block:
    rates = part.base_rate
    return Block(
        attribute=attribute,
        groups=_groups(part, audit),
        rates=base_rate_chart(f"rates-{place}", attribute, audit.favorable, rates, _rates(rates)),
        rates_note=_comparison(rates),
        proxies=_proxy_chart(place, attribute, part.proxies),
        words=_words(part) if part.words else None,
        lengths=_lengths(part) if part.lengths else None,
    )


def _groups(part: AttributeAudit, audit: DataAudit) -> Table:
    stated = any(row.reference is not None for row in part.groups)
    columns = ("Group", "People", "Rows", *(f"{label}, people" for label in audit.labels), "Share of the known (95 %)")
    rows = []
    for row in part.groups:
        small = ", small" if 0 < row.people < audit.min_people else ""
        cells = (row.group + small, f"{row.people:,}", f"{row.rows:,}", *(f"{count:,}" for count in row.by_label), said(row.share))
        reference = (NOTHING if row.reference is None else f"{row.reference:.3f}", said(row.representation, 2)) if stated else ()
        rows.append((*cells, *reference))
    return Table((*columns, *(("Reference", "Representation ratio (95 %)") if stated else ())), tuple(rows))


def _rates(rates: RateComparison) -> Table:
    rows = tuple((group.group + (", small" if group.small else ""), f"{group.people:,}", said(group.rate)) for group in rates.groups)
    return Table(("Group", "People", "Rate (95 %)"), rows)


def _comparison(rates: RateComparison) -> str:
    if rates.difference.value is None:
        return "Fewer than two groups are large enough to be compared."
    equality = "" if rates.p_value is None else f" Equal rates would give such a difference with probability {_p(rates.p_value)}."
    return f"Largest minus smallest rate: {said(rates.difference)}. Smallest over largest: {said(rates.ratio)}.{equality}"


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _proxy_chart(place: int, attribute: str, proxies: Proxies | None) -> Chart | None:
    if proxies is None:
        return None
    rows = tuple(
        (
            proxy.column + (" (sensitive itself)" if proxy.sensitive else ""),
            f"{proxy.auc:.3f}",
            NOTHING if proxy.explained is None else f"{proxy.explained:.3f}",
        )
        for proxy in proxies.columns
    )
    together = () if proxies.together is None else (("all that are not sensitive", f"{proxies.together:.3f}", NOTHING),)
    table = Table(("Column", "AUC", "Share of the attribute's entropy explained"), (*rows, *together))
    return proxy_chart(f"proxies-{place}", attribute, proxies.columns, proxies.together, table)


def _words(part: AttributeAudit) -> Table:
    rows = tuple(
        (word.word, word.group, f"{word.share:.1%}", f"{word.rest:.1%}", f"{word.log_odds:.2f}", f"{word.z:.1f}", f"{word.people:,}")
        for word in part.words
    )
    return Table(("Word", "Typical of", "Used by", "By the others", "Log-odds ratio", "z", "People"), rows)


def _lengths(part: AttributeAudit) -> Table:
    rows = tuple((item.group, f"{item.rows:,}", f"{item.low:.0f}", f"{item.median:.0f}", f"{item.high:.0f}") for item in part.lengths)
    return Table(("Group", "Texts", "Words, 10 % have fewer", "Median", "10 % have more"), rows)


def _duplicates(audit: DataAudit) -> Table:
    def row(name: str, copies: Copies) -> tuple[str, ...]:
        return name, *(f"{count:,}" for count in copies.within), f"{copies.across:,}"

    found = audit.duplicates
    rows = [row("Equal in every column but the person", found.records), row("The model reads the same", found.inputs)]
    rows += [] if found.texts is None else [row("Free text equal word for word", found.texts)]
    return Table(("Rows that repeat another", *(f"within {split}" for split in SPLITS), "copies of training in the others"), tuple(rows))


def _missing(audit: DataAudit) -> Table:
    rows = []
    for item in audit.missing:
        for attribute, rates in item.by_attribute.items():
            shares = "; ".join(f"{group.group} {group.rate.value:.1%}" for group in rates.groups if group.rate.value is not None)
            rows.append((item.column, f"{item.rows:,}", attribute, shares, said(rates.difference)))
        if not item.by_attribute:
            rows.append((item.column, f"{item.rows:,}", NOTHING, NOTHING, NOTHING))
    return Table(("Column", "Rows without", "By", "Share missing per group", "Largest difference (95 %)"), tuple(rows))


def _noise(audit: DataAudit) -> Table | None:
    if audit.noise is None:
        return None

    def row(kind: str, item: Contradicted) -> tuple[str, ...]:
        return f"{kind}{item.name}", f"{item.rows:,}", f"{item.sure:,}", f"{item.contradicted:,}", f"{item.expected:.1f}"

    rows = [row("", audit.noise.everybody)]
    rows += [row("label ", item) for item in audit.noise.by_label]
    rows += [row(f"{attribute} ", item) for attribute, items in audit.noise.by_group.items() for item in items if item.rows]
    return Table(("Rows", "Looked at", "Model is sure", "Label contradicted", "Chance explains"), tuple(rows))
