"""All measures of the data audit on one table. Node-only: exact numbers about the site's own people.

Next: ``findings.py`` turns them into sentences, ``governance/data_report.py`` draws the page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedethos.fairness.data_audit.duplicates import Duplicates, find_duplicates
from fedethos.fairness.data_audit.group_table import GroupRow, group_table
from fedethos.fairness.data_audit.label_noise import LabelNoise, label_noise
from fedethos.fairness.data_audit.missingness import Missing, TextLength, missing_columns, text_lengths
from fedethos.fairness.data_audit.personal_data import Identifiers, personal_data
from fedethos.fairness.data_audit.proxies import Proxies, find_proxies
from fedethos.fairness.data_audit.rates import RateComparison, compare_rates
from fedethos.fairness.data_audit.table import SPLITS, AuditTable
from fedethos.fairness.data_audit.words import Word, typical_words


@dataclass(frozen=True)
class AttributeAudit:
    """One sensitive attribute: ``base_rate`` is the share of the favorable label; ``proxies`` None without two groups to compare."""

    groups: tuple[GroupRow, ...]
    base_rate: RateComparison
    proxies: Proxies | None
    words: tuple[Word, ...]
    lengths: tuple[TextLength, ...]


@dataclass(frozen=True)
class DataAudit:
    """``people`` and ``rows`` take part in the job, by split in that order of ``SPLITS``. ``constant``: inputs that never differ."""

    rows: int
    people: int
    rows_by_split: tuple[int, ...]
    people_by_split: tuple[int, ...]
    most_rows_of_a_person: int
    labels: tuple[str, ...]
    favorable: str
    min_people: int
    attributes: dict[str, AttributeAudit]
    constant: tuple[str, ...]
    missing: tuple[Missing, ...]
    duplicates: Duplicates
    noise: LabelNoise | None
    identifiers: tuple[Identifiers, ...]


def audit_data(table: AuditTable, *, reference: Mapping[str, Mapping[str, float]], min_people: int, rng: np.random.Generator) -> DataAudit:
    """Measure ``table``.

    Parameters
    ----------
    reference : mapping
        Attribute to group to its share of the population that the site should look like; may be empty.
    min_people : int
        ``privacy.metrics.min_group_size``: smaller groups are shown and marked, never compared. A word is shown from this many people
        on, and never below 11.
    rng : numpy.random.Generator
        Draws folds and samples.
    """
    parts = [table.split == place for place in range(len(SPLITS))]
    return DataAudit(
        rows=len(table),
        people=len(np.unique(table.people)),
        rows_by_split=tuple(int(part.sum()) for part in parts),
        people_by_split=tuple(len(np.unique(table.people[part])) for part in parts),
        most_rows_of_a_person=int(np.bincount(table.people).max()),
        labels=table.labels,
        favorable=table.labels[table.favorable],
        min_people=min_people,
        attributes={
            attribute: AttributeAudit(
                groups=group_table(table, attribute, reference.get(attribute)),
                base_rate=compare_rates(table.favored, table, attribute, min_people=min_people),
                proxies=find_proxies(table, attribute, min_people=min_people, rng=rng),
                words=typical_words(table, attribute, min_people=max(min_people, 11)),
                lengths=text_lengths(table, attribute),
            )
            for attribute in table.groups
        },
        constant=tuple(column.name for column in table.columns if not column.text and (column.codes == column.codes[0]).all()),
        missing=missing_columns(table, min_people=min_people),
        duplicates=find_duplicates(table, rng=rng),
        noise=label_noise(table, rng=rng),
        identifiers=personal_data(table),
    )
