"""One table to several virtual sites. Whole people move: all records of a person (identity) are at one site.

- ``iid``: people are dealt out at random, in equal numbers.
- ``dirichlet``: for each category of ``by``, its people are cut over the sites in proportions drawn from Dirichlet(alpha, …, alpha):
  the label-skew benchmark that follows Hsu, Qi & Brown 2019 (arXiv:1909.06335), drawn per category as in Yurochkin et al. 2019
  (arXiv:1905.12022). Small alpha: a category sits at few sites; large alpha: close to iid.
- ``by-column``: natural sites, one per value of a column (a hospital, a state).
- ``by-group``: each site holds one category of ``by``, several where sites are fewer; a category's people are dealt out over its sites.

The seed alone decides; the order of the records does not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedethos import job_simulation
from fedethos.data.records import Records
from fedethos.errors import FedethosError

Indices = NDArray[np.int64]

_REMEDY = {
    "iid": "Use simulation.partition.redraw, another simulation.seed, fewer sites, or more records (data.limit).",
    "dirichlet": "Use simulation.partition.redraw, a larger simulation.partition.alpha, another simulation.seed, or fewer sites.",
    "by-column": "Leave this site's records out, or partition by another column.",
    "by-group": "Partition by another attribute, or use dirichlet with a small alpha.",
}


def partition(
    records: Records,
    plan: job_simulation.Partition,
    *,
    sites: int,
    seed: int,
    label_values: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    draw: int = 0,
) -> list[Indices]:
    """Record indices of each site, ascending; every record is at exactly one site.

    ``categories`` are ``data.sensitive``. For ``by-column`` the records keep that column (``apply_contract(..., keep=plan.by)``), and
    sites follow its values in sorted order. ``draw``: how often the seed was drawn from before (``Partition.redraw``).

    Raises DATA-132 to DATA-134 (natural sites that do not fit) and DATA-135 (a site without any record of a label).
    """
    person = _people(records)
    rng = np.random.default_rng([seed, draw] if draw else seed)
    if plan.kind == "iid":
        site_of_person = _deal(np.arange(person.max() + 1), np.arange(sites), rng)
    elif plan.kind == "by-column":
        site_of_person = _by_column(records, person, sites)
    else:
        category = _category_of_person(records, person, plan.by, label_values, categories)
        site_of_person = _dirichlet(category, sites, plan.alpha, rng) if plan.kind == "dirichlet" else _by_group(category, sites, rng)
    site = site_of_person[person]
    indices = [np.flatnonzero(site == s) for s in range(sites)]
    for s, chosen in enumerate(indices):
        missing = _missing_labels(records.label[chosen], label_values)
        if missing:
            raise FedethosError(
                "DATA-135",
                f"Site {s + 1} of {sites} would hold no record of the label {' or '.join(missing)}.",
                where="simulation.partition",
                why="It could learn nothing about that outcome, and its rates would be undefined.",
                fix=_REMEDY[plan.kind],
            )
    return indices


def check_site_labels(train: Records, site: str, label_values: Sequence[str]) -> None:
    """Raise DATA-136 unless the site's training records hold every label at least once."""
    missing = _missing_labels(train.label, label_values)
    if missing:
        raise FedethosError(
            "DATA-136",
            f"The training records of {site} hold no record of the label {' or '.join(missing)}.",
            where="data.split.train",
            why="The site could learn nothing about that outcome.",
            fix="Simulation: simulation.partition.redraw, larger alpha, other simulation.seed or fewer sites. Real site: more records.",
        )


def _missing_labels(label: NDArray[np.int64], label_values: Sequence[str]) -> list[str]:
    counts = np.bincount(label, minlength=len(label_values))
    return [value for value, count in zip(label_values, counts, strict=True) if count == 0]


def _people(records: Records) -> Indices:
    """Person of each record, numbered in the order of the digests, which no reordering of the records changes."""
    digests = np.ascontiguousarray(records.identity).view("V32").ravel()
    return np.unique(digests, return_inverse=True)[1].astype(np.int64)


def _deal(people: Indices, sites: Indices, rng: np.random.Generator) -> Indices:
    """A site for each of ``people``, at random and in numbers that differ by one at most."""
    site = np.empty(len(people), dtype=np.int64)
    site[rng.permutation(len(people))] = np.resize(sites, len(people))
    return site


def _category_of_person(
    records: Records, person: Indices, by: str | None, label_values: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> Indices:
    """The category that most of a person's records have; the first declared one among equals."""
    if by is None or (by != "label" and by not in records.groups):
        raise ValueError(f"simulation.partition.by must be 'label' or one of {sorted(records.groups)}")
    value = records.label if by == "label" else records.groups[by]
    kinds = len(label_values) if by == "label" else len(categories[by]) + 1
    counts = np.bincount(person * kinds + value, minlength=(person.max() + 1) * kinds).reshape(-1, kinds)
    category: Indices = counts.argmax(axis=1).astype(np.int64)
    return category


def _dirichlet(category: Indices, sites: int, alpha: float, rng: np.random.Generator) -> Indices:
    site = np.empty(len(category), dtype=np.int64)
    for kind in np.unique(category):
        people = rng.permutation(np.flatnonzero(category == kind))
        proportions = rng.dirichlet(np.full(sites, alpha))
        cuts = np.floor(np.cumsum(proportions)[:-1] * len(people)).astype(np.int64)
        for s, part in enumerate(np.split(people, cuts)):
            site[part] = s
    return site


def _by_group(category: Indices, sites: int, rng: np.random.Generator) -> Indices:
    site = np.empty(len(category), dtype=np.int64)
    present = np.unique(category)
    for position, kind in enumerate(present):
        people = np.flatnonzero(category == kind)
        own = np.arange(position, sites, len(present)) if position < sites else np.array([position % sites])
        site[people] = _deal(people, own, rng)
    return site


def _by_column(records: Records, person: Indices, sites: int) -> Indices:
    if records.kept is None:
        raise ValueError("by-column needs records that keep the column: apply_contract(..., keep=plan.by)")
    missing = sum(value is None for value in records.kept)
    if missing:
        raise FedethosError(
            "DATA-132",
            f"{missing} records have no value in the column that names their site.",
            where="simulation.partition.by",
            fix="Complete the column, or take these records out.",
        )
    names = np.array(records.kept, dtype=np.str_)
    values, site = np.unique(names, return_inverse=True)
    if len(values) != sites:
        raise FedethosError(
            "DATA-133",
            f"The column that names the sites has {len(values)} different values, but the job says {sites} sites.",
            where="simulation.sites",
            fix=f"Set simulation.sites to {len(values)}, or partition by another column.",
        )
    site_of_person = np.empty(person.max() + 1, dtype=np.int64)
    site_of_person[person] = site
    elsewhere = len(np.unique(person[site_of_person[person] != site]))
    if elsewhere:
        raise FedethosError(
            "DATA-134",
            f"{elsewhere} people have records at several sites.",
            where="simulation.partition.by",
            why="Each site protects a person on its own; together they would protect this person less than the job states.",
            fix="Give each person one site in the column, or use another partition.",
        )
    return site_of_person
