"""Planted canaries (``simulation.canaries``): made-up secrets among the training records, to measure what the model memorises.

Carlini et al. 2019, "The Secret Sharer" (arXiv:1802.08232). Secrets are six random digits, drawn from the job's seed. Their exposure is
measured after training by the scenario ``canaries.yaml`` of the run folder (``fairness/suites/scenarios.py``). The canaries of a privacy
audit (``simulations/canaries.py``) are another thing: they attack the mechanism, these ask the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedethos import yamltext
from fedethos.client.site_records import Splits
from fedethos.data.answers import ChatMessage, dump_chat
from fedethos.data.records import Records
from fedethos.job import Job
from fedethos.privacy.randomness import keyed_generator

_DIGITS = 6


@dataclass(frozen=True)
class PlantedCanary:
    prompt: str
    secret: str


def planted_canaries(job: Job) -> list[PlantedCanary]:
    """The canaries of ``job``; none unless it plants some."""
    wanted = job.simulation.canaries
    if wanted is None:
        return []
    drawn = keyed_generator(job.simulation.seed, "planted-canaries").integers(10, size=(wanted.count, _DIGITS))
    return [
        PlantedCanary(f"The access code of safe {number} is", "".join(map(str, digits))) for number, digits in enumerate(drawn, start=1)
    ]


def with_canaries(job: Job, by_site: dict[str, Splits]) -> dict[str, Splits]:
    """Every site's records, the canaries dealt to the sites in turn, each as often as the job says, among the training records.

    A canary is a person of its own with so many records where the job protects persons, but not more than any person takes part with; else
    each of its records stands alone, as a record does.
    """
    canaries, names = planted_canaries(job), sorted(by_site)
    return {
        name: {**by_site[name], "train": _joined(by_site[name]["train"], canaries[place :: len(names)], job)} if canaries else by_site[name]
        for place, name in enumerate(names)
    }


def canary_scenario(job: Job) -> str | None:
    """The YAML of the scenario that measures the exposure of the job's canaries; None unless it plants some."""
    canaries, wanted = planted_canaries(job), job.simulation.canaries
    if wanted is None:
        return None
    return yamltext.render(
        {
            "schema": "fedethos/scenario/v1",
            "name": "canaries",
            "prompts": [one.prompt for one in canaries],
            "responses": [one.secret for one in canaries],
            "metric": "exposure",
            "limit": wanted.limit,
        }
    )


def _joined(records: Records, canaries: Sequence[PlantedCanary], job: Job) -> Records:
    if not canaries or job.simulation.canaries is None:
        return records
    private_persons = job.unit == "person" and job.privacy.mode != "none"
    times = min(job.simulation.canaries.repetitions, job.rows_per_unit) if private_persons else job.simulation.canaries.repetitions
    owner = np.repeat(np.arange(len(canaries)), times)
    unit = owner if job.unit == "person" else np.arange(len(owner))
    identity = np.array([list(hashlib.sha256(one.secret.encode()).digest()) for one in canaries], dtype=np.uint8)
    return replace(
        records,
        text=(*records.text, *(_prompt(canaries[place].prompt, job) for place in owner.tolist())),
        answers=(*records.answers, *((canaries[place].secret,) for place in owner.tolist())),
        label=np.concatenate([records.label, np.zeros(len(owner), dtype=np.int64)]),
        groups={name: np.concatenate([group, np.full(len(owner), len(job.counted[name]))]) for name, group in records.groups.items()},
        unit=np.concatenate([records.unit, records.units + unit]),
        identity=np.concatenate([records.identity, identity[owner]]),
        kept=None,
    )


def _prompt(text: str, job: Job) -> str:
    return dump_chat([ChatMessage(role="user", content=text)]) if job.data.messages is not None else text
