"""What an attack costs under each robust rule: one run without attack, then one attacked run per rule, all on the same people.

The defender knows how many sites attack, not which: it assumes so many attackers, and trims as much weight as the heaviest of so
many sites have together. Metrics are exact and of the honest sites' test people alone. Next on the path: ``attacks.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.job_federation import RobustRule
from fedethos.messages import SplitName
from fedethos.progress import Observer
from fedethos.records import SimulatedAttack
from fedethos.result import Result
from fedethos.runfolder import RunFolder
from fedethos.server.plausibility import leverage, most_records
from fedethos.server.site import Site
from fedethos.simulations.attacks import attackers
from fedethos.simulations.backdoor import success_rate
from fedethos.simulations.engine import simulate
from fedethos.simulations.virtual_sites import approved_sites, declared_size, site_records
from fedethos.strategies.krum import fewest_sites

METRICS = ("accuracy", "balanced_accuracy", "roc_auc", "worst_group_accuracy")
GAPS = ("demographic_parity_difference", "equalized_odds_difference")
_MOST_TRIMMED = 0.45


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run. ``stopped``: the error code that ended it, else None.

    ``metrics``, and ``gaps`` as ``<attribute>.<metric>``, are exact values on the honest sites' test people; ``reported``: the accuracy in
    the run's own result; ``backdoor``: share of triggered people that get the favorable label against the truth.
    """

    rule: RobustRule
    attacked: bool
    stopped: str | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    gaps: Mapping[str, float | None] = field(default_factory=dict)
    reported: float | None = None
    backdoor: float | None = None

    @property
    def folder(self) -> str:
        return f"attacked-{self.rule}" if self.attacked else "none"


@dataclass(frozen=True, kw_only=True)
class Study:
    """``forging_bound``: the most that forged counts can move a pooled proportion over all test people; None if nothing bounds it."""

    attack: SimulatedAttack
    sites: tuple[str, ...]
    attackers: tuple[str, ...]
    forging_bound: float | None
    outcomes: tuple[Outcome, ...]


def study(
    job: Job, attack: SimulatedAttack, out: Path, *, base: Path, observer: Observer, wire: bool = False, force: bool = False
) -> Study:
    """Run ``job`` into ``out``/none and, attacked, into ``out``/attacked-RULE for its own rule and every other one.

    A run that the attack stops (too few valid replies, nothing finite) is part of the answer; other errors are raised.
    """
    by_site = site_records(job, base)
    sites = approved_sites(job, {name: declared_size(job, name, splits["train"].units) for name, splits in by_site.items()}).values()
    bad = attackers(by_site, attack.share, job.simulation.seed)
    plans = [(job, False), *((plan, True) for plan in defended(job, list(sites), len(bad)))]
    outcomes = []
    for number, (plan, attacked) in enumerate(plans, start=1):
        observer.stage(f"Run {number} of {len(plans)}: {f'attacked, {plan.robustness.rule}' if attacked else 'no attack'}")
        done = attack if attacked else attack.model_copy(update={"kind": None})
        folder = out / Outcome(rule=plan.robustness.rule, attacked=attacked).folder
        try:
            simulate(plan, folder, base=base, observer=observer, wire=wire, force=force, attack=done)
        except FedethosError as error:
            if not attacked or not error.code.startswith("AGG-"):
                raise
            outcomes.append(Outcome(rule=plan.robustness.rule, attacked=True, stopped=error.code))
            continue
        rate = success_rate(plan, folder, bad, base=base, observer=observer) if attack.kind == "backdoor" else None
        outcomes.append(_outcome(plan.robustness.rule, attacked, RunFolder(folder).read_result(), rate))
    return Study(
        attack=attack,
        sites=tuple(sorted(by_site)),
        attackers=tuple(sorted(bad)),
        forging_bound=_forging_bound(job, list(sites), bad, {name: len(splits["test"]) for name, splits in by_site.items()}),
        outcomes=tuple(outcomes),
    )


def planned_runs(job: Job, share: float) -> list[str]:
    """Folder names of the runs, from the job alone."""
    names = [str(number) for number in range(job.simulation.sites)]
    alike = [Site(name=name, node_id=number, share=1 / len(names), declared_size=1) for number, name in enumerate(names)]
    plans = defended(job, alike, len(attackers(names, share, job.simulation.seed)))
    return [Outcome(rule="none", attacked=False).folder, *(Outcome(rule=plan.robustness.rule, attacked=True).folder for plan in plans)]


def defended(job: Job, sites: Sequence[Site], count: int) -> list[Job]:
    """The job under its own rule, then under every other one that its number of sites allows, against ``count`` attackers."""
    heaviest = sum(sorted((site.share for site in sites), reverse=True)[:count])
    keys: dict[RobustRule, dict[str, object]] = {
        "trimmed-mean": {"trim_share": min(_MOST_TRIMMED, heaviest)},
        "krum": {"assumed_attackers": count},
        "multi-krum": {"assumed_attackers": count},
    }
    rules: list[RobustRule] = [rule for rule in get_args(RobustRule) if rule != job.robustness.rule]
    if len(sites) < fewest_sites(count):
        rules = [rule for rule in rules if rule not in ("krum", "multi-krum")]
    return [job, *(_with_rule(job, rule, keys.get(rule, {}), count) for rule in rules)]


def _with_rule(job: Job, rule: RobustRule, keys: Mapping[str, object], count: int) -> Job:
    kept = {"max_update_norm": job.robustness.max_update_norm, "weight_cap": job.robustness.weight_cap}
    plan = job.model_dump(by_alias=True) | {"robustness": {"rule": rule, **kept, **keys}}
    if "krum" in rule:
        plan["federation"]["min_sites"] = max(job.federation.min_sites, fewest_sites(count))
    return Job.model_validate(plan)


def _forging_bound(job: Job, sites: Sequence[Site], bad: frozenset[str], test_records: Mapping[str, int]) -> float | None:
    split: SplitName = "test"
    most = [most_records(job, site.declared_size, split) for site in sites if site.name in bad]
    if job.privacy.mode != "none" or None in most:
        return None  # noise comes on top, or nothing bounds the records of a person
    return leverage(sum(one for one in most if one is not None), sum(count for name, count in test_records.items() if name not in bad))


def _outcome(rule: RobustRule, attacked: bool, result: Result, backdoor: float | None) -> Outcome:
    exact = result.oracle
    if exact is None:
        raise ValueError("a simulation has exact values")
    return Outcome(
        rule=rule,
        attacked=attacked,
        metrics={name: getattr(exact.metrics, name) for name in METRICS},
        gaps={f"{attribute}.{name}": getattr(gaps, name) for attribute, gaps in exact.fairness.items() for name in GAPS},
        reported=result.metrics.accuracy.value,
        backdoor=backdoor,
    )
