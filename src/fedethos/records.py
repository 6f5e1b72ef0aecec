"""The other JSON documents of a run folder: ``manifest.json``, ``rounds.jsonl``, ``privacy.json``, ``fairness.json``.

The keys below are what the report and the terminal read; they are checked when written and when read. A writer may add
more keys (everything measured goes into the manifest), so unknown ones are kept on disk and ignored here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from fedethos.attack_kind import AttackKind
from fedethos.result import Attribute, Basis, Count, Seconds

SiteState = Literal["sent", "late", "refused"]


class Document(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False)


class RoundMetrics(Document):
    """Plain numbers on the validation split; null when not released."""

    accuracy: float | None
    balanced_accuracy: float | None
    f1: float | None
    roc_auc: float | None
    worst_group_accuracy: float | None


class RoundGaps(Document):
    demographic_parity_difference: float | None
    equalized_odds_difference: float | None


class Refusal(Document):
    site: str
    code: str
    incident: str = ""


class Round(Document):
    """One line of ``rounds.jsonl``; round 0 is before training. ``seconds`` and bytes are of this round alone.

    ``weights``: group to label to the weight of its people's clipped gradients in this round, ``site_weights`` a site's weight in the
    aggregation, where a strategy moves them; derived from released counts. ``quarantined``: sites that are not asked any more, each with
    the code of its last refused reply.
    """

    round: Count
    seconds: Seconds
    sites: dict[str, SiteState]
    metrics: RoundMetrics
    fairness: dict[str, RoundGaps]
    basis: Basis
    epsilon: dict[str, float | None] | None
    bytes_up: Count
    bytes_down: Count
    aggregation_error: float | None
    weights: dict[str, dict[str, float]] | None = None
    site_weights: dict[str, float] | None = None
    refusals: list[Refusal]
    quarantined: list[Refusal] = []


class SimulatedAttack(Document):
    """What some sites of a simulation do (``fedethos.simulations.attacks``). ``kind`` None: they behave, as the run to compare with.

    ``share``: of the sites, in (0, 1).
    """

    kind: AttackKind | None
    share: float


class Local(Document):
    """What only this machine knows.

    ``base``: the folder that relative paths in the job start from; ``wire``: whether messages are serialised; ``run``: what the ledger
    calls this run.
    """

    base: str
    wire: bool
    run: str
    attack: SimulatedAttack | None = None


class BaseModelIdentity(Document):
    path: str
    sha256: str


class ManifestSite(Document):
    declared_size: int | None
    weight: float
    declared: Literal["rounded-from-simulation", "site"]


class Manifest(Document):
    name: str
    job_sha256: str
    versions: dict[str, str]
    python: str
    threads: int
    seed: int
    base_model: BaseModelIdentity
    sites: dict[str, ManifestSite]
    basis: Basis
    secure_rng: bool
    engine: str
    marks: list[str]


class PrivacySite(Document):
    """All null under ``mode: none``, but the declared size and the steps."""

    epsilon: float | None
    delta: float | None
    steps: Count
    sampling_rate: float | None
    noise_multiplier: float | None
    declared_size: int | None


class PrivacyReport(Document):
    mode: str
    unit: str
    adjacency: str
    delta: float | None
    target_epsilon: float | None
    max_grad_norm: float | None
    secure_rng: bool
    accountant: str | None
    sites: dict[str, PrivacySite]
    statement: str


class GroupRule(Document):
    """Chances of a favorable decision at log-odds below ``low``, from ``low`` on, from ``high`` on. ``own``: not everybody's threshold."""

    low: float
    high: float
    chances: list[float]
    own: bool


class Threshold(Document):
    """``log_odds`` and ``edge_index`` are everybody's threshold; ``groups``: what stands in its place by group of ``attribute``."""

    kind: str
    log_odds: float | None
    edge_index: int | None
    source: str
    group_aware: bool = False
    attribute: str | None = None
    groups: dict[str, GroupRule] = {}


class Verdict(Document):
    state: str
    sentences: list[str]


class PeopleCounts(Document):
    """Null where the number of people is not public."""

    train: int | None
    validation: int | None
    test: int | None


class FairnessReport(Document):
    threshold: Threshold
    verdict: Verdict
    attributes: dict[str, Attribute]
    min_group_size: int
    tolerance: float
    people: PeopleCounts
