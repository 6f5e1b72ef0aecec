"""One page for the people who decide at a site: what a job would run, what would leave and on what basis, what it costs, how often.

Everything comes from the job, the site's own document, its ledger, and the model on this machine; no record is read. ``fedethos client
review`` prints it, ``governance/job_review.py`` draws it, ``fedethos client approve`` signs the job.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import fedethos
from fedethos.aggregation import phases, trained_in
from fedethos.client.model_probe import ModelFacts
from fedethos.client.spending import declared_size, spending_plan
from fedethos.code_identity import code_sha256
from fedethos.errors import FedethosError
from fedethos.fairness.histograms import table_shapes
from fedethos.fairness.layout import DEFAULT_CUTS, FINE, Layout
from fedethos.fairness.responses import known_cuts
from fedethos.fairness.threshold import FIXED_EDGE
from fedethos.job import Job
from fedethos.job_data import Text
from fedethos.privacy.composition import epsilon
from fedethos.privacy.counts import CountPlan, plan_counts
from fedethos.privacy.events import TRAIN, Allotment
from fedethos.privacy.ledger import quote
from fedethos.privacy.ledger_state import LedgerState
from fedethos.scenario_words import filter_words
from fedethos.site import SiteDocument
from fedethos.wording import personal_words

_LIBRARIES = ("flwr", "torch", "transformers", "peft", "opacus", "numpy", "cryptography")
_NO_RUN = "review"  # names no run: a plan under it is never committed
_STATEMENT = 700  # bytes, the most, of a statement in Flower's frame
_FRAME = 480  # bytes, the most, of what Flower writes around a tensor beside its name


@dataclass(frozen=True, kw_only=True)
class Leaving:
    """One kind of message. ``times``: the most different ones in a whole run. ``basis`` as in docs/privacy.md."""

    what: str
    contents: tuple[str, ...]
    bytes: int
    times: int
    basis: str


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Epsilon at ``delta``, per person or record. ``refusal``: why the ledger would not pay for it; None when it would."""

    unit: str
    adjacency: str
    delta: float
    first_round: float
    whole_run: float
    job_limit: float
    noise_multiplier: float
    spent_before: float
    left_before: float
    per_job_cap: float
    lifetime_cap: float
    refusal: str | None


@dataclass(frozen=True, kw_only=True)
class Review:
    """``cost``: None for a job without privacy. ``personal``: what becomes of a personal adapter; empty without one. ``steps``: in a round,
    of both adapters. ``decisions``: what this site's own document says. ``warnings`` come first on the page.
    """

    job_name: str
    job_sha256: str
    code_sha256: str
    base_sha256: str
    versions: tuple[tuple[str, str], ...]
    task: str
    personal: str
    rounds: int
    steps: int
    deadline_seconds: float
    leaving: tuple[Leaving, ...]
    reads: tuple[tuple[str, str], ...]
    cost: Cost | None
    seconds: float
    memory_bytes: int
    device: str
    decisions: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def review_job(job: Job, site: SiteDocument, facts: ModelFacts, ledger: LedgerState) -> Review:
    """Errors as for ``spending.declared_size``: a job that does not name this site cannot be reviewed here."""
    name, _ = site.as_node()
    size = declared_size(job, name)
    cost = _cost(job, site, ledger)
    return Review(
        job_name=job.name,
        job_sha256=job.sha256,
        code_sha256=code_sha256(),
        base_sha256=facts.base_sha256,
        versions=(("fedethos", fedethos.__version__), *((library, metadata.version(library)) for library in _LIBRARIES)),
        task=job.task,
        personal=personal_words(job),
        rounds=job.federation.rounds,
        steps=job.steps_in_round,
        deadline_seconds=job.federation.deadline,
        leaving=_leaving(job, facts),
        reads=_reads(job),
        cost=cost,
        seconds=facts.seconds_per_round * job.federation.rounds,
        memory_bytes=facts.memory_bytes,
        device=facts.device,
        decisions=_decisions(job, site, size),
        warnings=_warnings(job, site, cost, facts),
    )


def _leaving(job: Job, facts: ModelFacts) -> tuple[Leaving, ...]:
    basis = "unprotected" if job.privacy.mode == "none" else "charged"
    rows = [Leaving(what="setup", contents=("version of fedethos", "hash of the base model"), bytes=_STATEMENT, times=1, basis="public")]
    trained = max(phases(job.aggregation, facts.tensors), key=lambda names: sum(math.prod(facts.tensors[name]) for name in names))
    rows.append(
        Leaving(
            what="train",
            contents=tuple(f"{name} {_spelled(facts.tensors[name])}" for name in trained),
            bytes=_message_bytes({name: facts.tensors[name] for name in trained}, 4),
            times=job.federation.rounds,
            basis=basis,
        )
    )
    if center := trained_in(job.aggregation, 0, facts.tensors):
        rows.append(
            Leaving(
                what="train, before round 1",
                contents=tuple(f"mean of what the head reads, {name} {_spelled(facts.tensors[name])}" for name in center),
                bytes=_message_bytes({name: facts.tensors[name] for name in center}, 4),
                times=1,
                basis=basis,
            )
        )
    rows += [_counts(job, plan) for plan in plan_counts(job, rows_per_unit=job.rows_per_unit)] or _exact_counts(job)
    rows.append(Leaving(what="error", contents=("a code of a fixed list", "a random number"), bytes=_STATEMENT, times=0, basis="public"))
    return tuple(rows)


def _counts(job: Job, plan: CountPlan) -> Leaving:
    group_cuts = DEFAULT_CUTS if "group-scores" in plan.parts else None
    layout = Layout(
        cuts=None if "scores" not in plan.parts else FINE if plan.population == "validation" else known_cuts(job),
        edge=FIXED_EDGE if "groups" in plan.parts else None,
        attribute=job.fairness_attribute if group_cuts else None,
        group_cuts=group_cuts,
    )
    shapes = layout.shapes(job.counted, len(job.data.label.values))
    return Leaving(
        what=f"counts of {plan.population} people{', personal adapter' if plan.personal else ''}, with noise",
        contents=tuple(
            f"{name.lstrip(':')} {_spelled(shape)}, noise of {plan.release.sigma:.2f} records a cell" for name, shape in shapes.items()
        ),
        bytes=_message_bytes(shapes, 8),
        times=plan.releases,
        basis="charged",
    )


def _exact_counts(job: Job) -> list[Leaving]:
    shapes, personal = table_shapes(job.counted, len(job.data.label.values)), job.training.personal
    counted = [("validation people", job.federation.rounds + 3), ("test people", 2)]
    if personal is not None and personal.release_counts:
        counted += [("validation people, personal adapter", 1), ("test people, personal adapter", 1)]
    return [
        Leaving(
            what=f"exact counts of {who}",
            contents=tuple(f"{name} {_spelled(shape)}" for name, shape in shapes.items()),
            bytes=_message_bytes(shapes, 8),
            times=times,
            basis="unprotected",
        )
        for who, times in counted
    ]


def _reads(job: Job) -> tuple[tuple[str, str], ...]:
    data = job.data
    read = ", ".join(data.features) if data.features else _text(data.text) or f"the chats in {data.messages}"
    answers = {"learns to write": data.response, "better answer": data.chosen, "worse answer": data.rejected}
    rows = [
        *([("label", f"{data.label.column}: {', '.join(data.label.values)}")] if data.label.column is not None else []),
        ("model reads", read),
        *((name, words) for name, text in answers.items() if (words := _text(text))),
        *((f"option {label}" if label in data.label.values else "options of", text) for label, text in (data.choices or {}).items()),
        ("groups", "; ".join(f"{name}: {', '.join(values)}" for name, values in data.sensitive.items()) or "none"),
        *(("scenario", f"{one.name}: {filter_words(one)}; counted on test people") for one in job.scenarios),
        ("person", data.person_id or "no column: each record counts as a person of its own"),
        (
            "split",
            f"train {data.split.train:g}, validation {data.split.validation:g}, test {data.split.test:g}, by a hash with this site's salt",
        ),
    ]
    return tuple(rows)


def _text(text: Text | None) -> str:
    return text if isinstance(text, str) else f"the column {text['column']}" if text else ""


def _cost(job: Job, site: SiteDocument, ledger: LedgerState) -> Cost | None:
    if job.privacy.mode == "none" or job.privacy.epsilon is None:
        return None
    plan = spending_plan(job, site, _NO_RUN)
    training = next(one for one in plan.allotments if one.purpose == TRAIN)
    account, refusal = ledger.accounts.get(site.account), None
    try:
        account, _ = quote(ledger, plan, site.caps)
    except FedethosError as error:
        refusal = f"{error.code} {error.what} {error.fix}".strip()
    return Cost(
        unit=job.unit,
        adjacency=job.privacy.adjacency,
        delta=job.privacy.delta,
        first_round=_epsilon([Allotment(purpose=TRAIN, event=training.event, times=1)], job),
        whole_run=_epsilon(plan.allotments, job),
        job_limit=job.privacy.epsilon,
        noise_multiplier=getattr(training.event, "noise_multiplier", 0.0),
        spent_before=account.epsilon if account else 0.0,
        left_before=account.epsilon_left if account else site.caps.lifetime_epsilon,
        per_job_cap=site.caps.per_job_epsilon,
        lifetime_cap=site.caps.lifetime_epsilon,
        refusal=refusal,
    )


def _epsilon(allotments: Sequence[Allotment], job: Job) -> float:
    return epsilon(allotments, delta=job.privacy.delta, adjacency=job.privacy.adjacency)


def _decisions(job: Job, site: SiteDocument, size: int) -> tuple[tuple[str, str], ...]:
    name, coordinator = site.as_node()
    caps = site.caps
    return (
        ("site", f"{name}, declared size {size:,} {job.unit}s (public)"),
        ("coordinator", coordinator.address + (", without TLS, on this machine" if coordinator.insecure else "")),
        ("ledger account", site.account),
        ("records", site.data.path),
        ("people taken out", site.data.removed or "no list"),
        (
            "caps",
            f"epsilon {caps.per_job_epsilon:g} a job, {caps.lifetime_epsilon:g} for ever, at delta {caps.delta:g}; {caps.rounds} rounds",
        ),
        ("hours", site.hours or "any"),
        ("device", site.device + (f", at most {site.memory_gb:g} GB" if site.memory_gb else "")),
        ("jobs without privacy", "allowed" if site.allow_unprotected else "refused"),
    )


def _warnings(job: Job, site: SiteDocument, cost: Cost | None, facts: ModelFacts) -> tuple[str, ...]:
    found = []
    if cost is None:
        allowed = "site.yaml allows it" if site.allow_unprotected else "site.yaml does not allow it, so it cannot be approved (PRIV-360)"
        found.append(f"This job has NO differential privacy: exact updates and counts leave. {allowed}.")
    elif cost.refusal:
        found.append(f"Your privacy budget does not pay for this job: {cost.refusal}")
    if job.privacy.mode != "none" and job.privacy.secure_rng is False:
        found.append("The job switches secure random numbers off, so no guarantee holds: a real ledger account refuses it (PRIV-313).")
    if job.unit == "record" and job.privacy.mode != "none":
        found.append("Privacy is counted per record: a person with several records is protected less than the epsilon says.")
    if job.policy is not None and job.policy.allow_group_thresholds:
        found.append("Decisions may use the sensitive attribute (policy.allow_group_thresholds). Have it reviewed.")
    if facts.seconds_per_round > job.federation.deadline:
        found.append("A round may take longer here than the coordinator waits (federation.deadline): this site would often be late.")
    if site.memory_gb is not None and facts.memory_bytes > site.memory_gb * 1e9:
        found.append("Training may take more memory than memory_gb allows.")
    return tuple(found)


def _message_bytes(tensors: Mapping[str, Sequence[int]], itemsize: int) -> int:
    """Upper bound for a message with these tensors or tables, by name and shape, as the site's record of what left counts it."""
    return _STATEMENT + sum(_FRAME + len(name) + itemsize * math.prod(shape) for name, shape in tensors.items())


def _spelled(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))
