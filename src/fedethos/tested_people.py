"""Who a run was tested on, as a hash: numbers of runs with other test people do not compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from fedethos.job import Job
from fedethos.result import Result

_NOT_THE_PEOPLE = {"text"}  # keys of ``data`` that change what the model reads, not who is tested


def people_hash(job: Job, result: Result) -> str:
    """Differs when the test people may: data contract, split, what the split is drawn from, and how many they are."""
    data = {key: value for key, value in job.data.model_dump(mode="json").items() if key not in _NOT_THE_PEOPLE}
    simulation = job.simulation
    drawn = None if job.data.split_salt else [simulation.seed, simulation.sites, simulation.partition.model_dump(mode="json")]
    bound = job.privacy.max_records_per_person if job.unit == "person" and job.privacy.mode != "none" else None
    count = result.oracle.people.test if result.oracle else None
    return hashlib.sha256(json.dumps([data, drawn, bound, count], sort_keys=True).encode()).hexdigest()


def share_people(people: Iterable[frozenset[str]]) -> bool:
    """Whether every set of hashes lies within the largest: a failed seed is no other data."""
    sets = sorted(people, key=len)
    return all(one <= sets[-1] for one in sets)
