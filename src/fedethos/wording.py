"""How numbers are said: the same words in the terminal, the live view and the report.

Only a number that was released is shown, always with its interval; whatever weakens the numbers is a sentence of ``cautions``.
"""

from __future__ import annotations

import math
import re

from fedethos.data.features import feature_names
from fedethos.flip_record import FlipMeasures
from fedethos.job import Job
from fedethos.records import Manifest, PrivacyReport, Round
from fedethos.result import Interval, PrivacySummary, Result

FLIPS = {
    "swapped_share": "Read differently",
    "flip_rate": "Decisions that flip",
    "favorable_to_unfavorable": "To unfavorable",
    "unfavorable_to_favorable": "To favorable",
    "mean_absolute_score_change": "Mean score change",
}
WITHHELD = "withheld"
NOT_RELEASED = "not released"
GROUP_AWARE = (
    "Decisions use the sensitive attribute: groups have thresholds of their own. That may be disparate treatment (in the US: Title VII, "
    "enforced by the EEOC, and the ECOA) and needs legal review; this is not legal advice."
)


def number(value: float | None, digits: int = 3) -> str:
    return NOT_RELEASED if value is None else f"{value:.{digits}f}"


def interval(item: Interval, digits: int = 3) -> str:
    """``0.871 (0.860 to 0.882)``; an abstained one keeps its bounds and loses its number."""
    if item.low is None:
        return WITHHELD
    around = bounds(item, digits)
    return f"not measurable ({around})" if item.value is None else f"{number(item.value, digits)} ({around})"


def flip_cells(measures: FlipMeasures) -> list[str]:
    """The measures of ``flips.json`` in the order of ``FLIPS``."""
    texts = [interval(getattr(measures, name)) for name in FLIPS]
    return texts if measures.swapped else [texts[0], *["nothing to swap"] * (len(texts) - 1)]


def bounds(item: Interval, digits: int = 3) -> str:
    """``0.860 to 0.882``, for a place that shows the value by itself."""
    return WITHHELD if item.low is None or item.high is None else f"{item.low:.{digits}f} to {item.high:.{digits}f}"


def difference(after: float | None, before: float | None) -> str:
    if after is None or before is None:
        return NOT_RELEASED
    return f"{after - before:+.3f}"


def size(count: int) -> str:
    """Bytes in decimal units: ``12.4 MB``."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def duration(seconds: float) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def epsilon(value: float | None) -> str:
    """Two decimals, rounded up: a cost is never shown smaller than it is."""
    return "none" if value is None else f"{math.ceil(value * 100 - 1e-9) / 100:.2f}"


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts site-2 before site-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def largest_epsilon(privacy: PrivacyReport | PrivacySummary) -> float | None:
    """The weakest guarantee of any site; None if even one site has none."""
    values = [site.epsilon for site in privacy.sites.values()]
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None


def guarantee(privacy: PrivacyReport) -> str:
    """What an epsilon is about: it stands wherever an epsilon stands."""
    if privacy.mode == "none":
        return "no privacy protection"
    return f"per {privacy.unit} and site, {privacy.adjacency}, delta {privacy.delta:g}"


def trained_part(job: Job) -> str:
    """What of the model trains, and of which size."""
    if job.data.features is None:
        return f"LoRA of rank {job.lora.r}, alpha {job.lora.lora_alpha:g}{'' if job.is_language else ', and the head'}"
    hidden = "".join(f", hidden layer of {width}" for width in job.model.hidden or ())
    return f"the whole model, {len(feature_names(job.data.features))} inputs from {len(job.data.features)} columns{hidden}"


def steps_words(job: Job) -> str:
    """What a site trains in a round: ``20 steps``, and those of its personal adapter."""
    personal, steps = job.training.personal, job.training.local_steps
    if personal is None:
        return f"{steps} steps"
    noise = ", with noise" if job.personal_is_charged else ", without noise" if job.privacy.mode != "none" else ""
    return f"{steps} steps, and {personal.local_steps or steps} of the personal adapter{noise}"


def strategy_words(job: Job) -> str:
    """The fairness strategy and what it steers by; empty without one."""
    fairness = job.fairness
    if fairness.strategy == "none":
        return ""
    aims = {"afl": "risk of sites", "qfedavg": "risk of sites", "fedminmax": "risk by", "term": "risk by"}
    aim = aims.get(fairness.strategy, f"{fairness.constraint.replace('_', ' ')} by")
    who = f" {job.fairness_attribute}" if aim.endswith(" by") else ""
    return f"{fairness.strategy}: {aim}{who}, counts of the training people after every {fairness.every} rounds"


def loss_words(job: Job) -> str:
    """The ethics loss and the sampling, with what they steer by; empty where both are the usual ones."""
    fairness = job.fairness
    balanced = job.training.sampling == "group_balanced"
    counts = "counts of the training people before training" if fairness.training_shares is None else "public shares"
    loss = {
        "none": "cross-entropy" if balanced else "",
        "focal": f"focal, gamma {fairness.focal_gamma:g}",
        "counterfactual_consistency": f"counterfactual consistency, weight {fairness.consistency_weight:g}",
        "reweighing": f"reweighing by {job.fairness_attribute}, from {counts}",
        "group_dro": f"group DRO by {job.fairness_attribute}, from losses of the training people after every {fairness.every} rounds",
    }[fairness.loss]
    return f"{loss}; batches balanced by {job.fairness_attribute}" if balanced else loss


def personal_words(job: Job) -> str:
    """How sites train adapters of their own, and what leaves about them; empty where they do not."""
    personal = job.training.personal
    if personal is None:
        return ""
    kept = f"Beside the global adapter each site trains one of its own (Ditto, pull {personal.proximal_mu:g}), which never leaves it. "
    if not personal.release_counts:
        return kept + "It trains without noise, and no site sends a count of it: epsilon does not cover it, nor answers that it gives."
    if job.privacy.mode == "none":
        return kept + "Sites send exact counts of it."
    return kept + "It trains with noise, and sites send noisy counts of it; epsilon covers both."


def weight_words(line: Round) -> str:
    """A strategy's weights in a round: of cells, or of sites in the aggregation; empty when none were moved."""
    if line.site_weights is not None:
        return "; ".join(f"{site}: {weight:.2f}" for site, weight in sorted(line.site_weights.items(), key=lambda item: natural(item[0])))
    weights = line.weights or {}
    return "; ".join(f"{group} {label}: {weight:.2f}" for group, labels in weights.items() for label, weight in labels.items())


def marks(manifest: Manifest, privacy: PrivacyReport) -> list[str]:
    """Short marks for every page: the run's own, and those its documents demand whether or not the run set them."""
    demanded = ["No privacy protection"] if privacy.mode == "none" else []
    if not privacy.secure_rng and privacy.mode != "none":
        demanded.append("Simulation, not a guarantee")
    seen = {mark.casefold() for mark in demanded}
    return demanded + [mark for mark in dict.fromkeys(manifest.marks) if mark.casefold() not in seen]


def cautions(result: Result, privacy: PrivacyReport) -> list[str]:
    """What the numbers are not, one sentence each."""
    sentences = []
    if result.group_aware:
        sentences.append(GROUP_AWARE)
        sentences.append("Metrics per round use one threshold for everybody: they are not comparable with the final ones.")
    if privacy.mode == "none":
        sentences.append("No privacy protection: the job says privacy.mode: none, so updates and counts left the sites as they are.")
    elif not privacy.secure_rng:
        sentences.append("The noise came from a seeded generator: this is a simulation, not a guarantee.")
    if result.basis == "oracle" and privacy.mode != "none":
        sentences.append("Epsilon covers training only; evaluation is exact, which only a simulation may do.")
    elif result.basis == "oracle":
        sentences.append("Evaluation is exact, which only a simulation may do.")
    elif result.basis == "unprotected":
        sentences.append("The counts behind the metrics were sent without protection.")
    if result.basis == "released" and result.oracle is not None:
        sentences.append("Exact values and metrics per round are the simulation's own; no message carried them.")
    if result.basis == "released":
        sentences.append("The intervals are 95 % intervals of sampling and privacy noise together.")
    else:
        sentences.append("The intervals are 95 % intervals of sampling alone.")
    return sentences
