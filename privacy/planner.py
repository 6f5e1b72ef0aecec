"""Planning before anything is spent: noise for a budget, rounds for a noise, and everything one site will be charged for.

All of it follows from the job and the sizes that sites declare; no record is read. ``fedethos privacy plan`` prints it, a node commits
the same ``allotments`` to its ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.privacy.adaptive import gradient_noise_multiplier
from fedethos.privacy.center import plan_center
from fedethos.privacy.composition import epsilon, least_noise_factor, prv_epsilon
from fedethos.privacy.counts import plan_counts
from fedethos.privacy.events import TRAIN, Allotment, TrainingSteps
from fedethos.privacy.plan import plan_training, sampling_rate_of
from fedethos.privacy.renyi import epsilon_of_trials, renyi_epsilon

_MOST_ROUNDS = 10_000


@dataclass(frozen=True, kw_only=True)
class SiteCost:
    """What a job costs a person whose records train, at its delta: with counts of training people, under replace-one with all counts."""

    declared_size: int
    sampling_rate: float
    noise_multiplier: float
    epsilon: float


def allotments(job: Job, *, declared_size: int, rows_per_unit: int = 1, beside: Sequence[Allotment] = ()) -> tuple[Allotment, ...]:
    """Everything that a site of this size releases in the whole job: training, once a round, the head's centre, and counts.

    Empty under mode none.

    ``beside``: more releases, such as loss sums, that are borne by the people who train. Errors as for ``training_noise``, and PRIV-350
    when the count of adaptive clipping costs too much.
    """
    if job.privacy.mode == "none":
        return ()
    noise = training_noise(job, declared_size=declared_size, rows_per_unit=rows_per_unit, beside=beside)
    if job.privacy.clipping == "adaptive":
        gradient_noise_multiplier(noise, job.privacy.adaptive.unclipped_num_std)
    return (_training(job, declared_size, noise), *beside, *_center(job), *_counts(job, rows_per_unit))


def training_noise(job: Job, *, declared_size: int, rows_per_unit: int = 1, beside: Sequence[Allotment] = ()) -> float:
    """The least noise multiplier with which all of a site's releases keep the job's epsilon. Errors as for ``training_noise_beside``."""
    return training_noise_beside(job, declared_size=declared_size, others=(*beside, *_beside_training(job, rows_per_unit)))


def training_noise_beside(job: Job, *, declared_size: int, others: Sequence[Allotment]) -> float:
    """The least noise multiplier with which training and ``others`` together keep the job's epsilon.

    Parameters
    ----------
    others : sequence of Allotment
        What else a person bears whose records train: counts and sums of training people, under replace-one all counts. They have their
        noise already; training gets as much more as makes room for them. The whole is composed for each noise that is tried: a share of
        epsilon is no share of noise.

    Raises
    ------
    FedethosError
        PRIV-302 when no amount of noise keeps the budget; PRIV-303 as ``plan_training``; PRIV-332 under mode none.
    """
    plan = plan_training(job, declared_size=declared_size)
    if plan is None:
        raise _not_private()
    alone = plan.noise_multiplier
    if not others:
        return alone
    factor = least_noise_factor(lambda factor: _cost(job, (_training(job, declared_size, alone * factor), *others)) <= _budget(job))
    if factor is None:
        raise FedethosError(
            "PRIV-302",
            f"No amount of noise keeps training and what is released beside it within epsilon {_budget(job):g} at delta {plan.delta:g}.",
            where="privacy.epsilon",
            fix="Raise privacy.epsilon, or plan fewer federation.rounds or training.local_steps.",
        )
    return alone * factor


def noise_for_budget(job: Job, *, declared_size: int) -> SiteCost:
    """What the job's rounds cost a site with the noise that its budget asks for. Errors as for ``training_noise``."""
    return cost_of_noise(job, declared_size=declared_size, noise_multiplier=training_noise(job, declared_size=declared_size))


def cost_of_noise(job: Job, *, declared_size: int, noise_multiplier: float) -> SiteCost:
    """What the job's rounds cost a site with a given noise, within its budget or not."""
    counts = _beside_training(job, 1)
    return SiteCost(
        declared_size=declared_size,
        sampling_rate=sampling_rate_of(job, declared_size),
        noise_multiplier=noise_multiplier,
        epsilon=_cost(job, (_training(job, declared_size, noise_multiplier), *counts)),
    )


def cost_of_trials(job: Job, *, declared_size: int, noise_multiplier: float, trials: int) -> float:
    """Epsilon of ``trials`` runs of this job on the same people, each chosen after seeing the others: the lifetime cap that they take."""
    paid = (_training(job, declared_size, noise_multiplier), *_center(job), *_counts(job, 1))
    return epsilon_of_trials(paid, trials, delta=job.privacy.delta, adjacency=job.privacy.adjacency)


def training_cost_by_accountant(job: Job, *, declared_size: int, noise_multiplier: float) -> dict[str, float]:
    """Epsilon of the job's training alone. PLD is what is charged, PRV its check (add-remove only), RDP what older papers state."""
    paid = [_training(job, declared_size, noise_multiplier)]
    delta, adjacency = job.privacy.delta, job.privacy.adjacency
    prv = {"PRV": prv_epsilon(paid, delta=delta)} if adjacency == "add-remove" else {}
    return {"PLD": _cost(job, paid), **prv, "RDP": renyi_epsilon(paid, delta=delta, adjacency=adjacency)}


def rounds_for_noise(job: Job, *, declared_size: int, noise_multiplier: float) -> int:
    """The most rounds that a noise pays for within the job's epsilon; 0 when not even one, at most 10,000."""

    def fits(rounds: int) -> bool:
        planned = _with(job, rounds=rounds)
        return cost_of_noise(planned, declared_size=declared_size, noise_multiplier=noise_multiplier).epsilon <= _budget(job)

    return _most(fits, _MOST_ROUNDS)


def check_fits(job: Job, *, declared_size: int, noise_multiplier: float) -> SiteCost:
    """The cost of the job's rounds with a given noise.

    Raises
    ------
    FedethosError
        PRIV-301 when it is above the job's epsilon; the error names what would fit.
    """
    cost = cost_of_noise(job, declared_size=declared_size, noise_multiplier=noise_multiplier)
    if cost.epsilon <= _budget(job):
        return cost
    rounds = rounds_for_noise(job, declared_size=declared_size, noise_multiplier=noise_multiplier)

    def batch_fits(batch_size: int) -> bool:
        smaller = _with(job, batch_size=batch_size)
        return cost_of_noise(smaller, declared_size=declared_size, noise_multiplier=noise_multiplier).epsilon <= _budget(job)

    batch = _most(batch_fits, job.training.batch_size - 1)
    noise = noise_for_budget(job, declared_size=declared_size).noise_multiplier
    options = [f"{rounds} rounds"] if rounds else []
    options += [f"batch {batch}"] if batch else []
    options.append(f"noise {noise + 0.005:.2f} instead of {noise_multiplier:g}")
    raise FedethosError(
        "PRIV-301",
        f"This plan costs epsilon {cost.epsilon:.1f}; the limit is {_budget(job):g}.",
        where=f"a site of {declared_size} {job.unit}s",
        why="A site whose cap is the job's epsilon would refuse it before it reads a record.",
        fix=f"Options that fit: {', or '.join(options)}. Without --noise-multiplier, the noise is found for you.",
    )


def _training(job: Job, declared_size: int, noise_multiplier: float) -> Allotment:
    rate = sampling_rate_of(job, declared_size)
    steps = TrainingSteps(noise_multiplier=noise_multiplier, sampling_rate=rate, steps=job.charged_steps)
    return Allotment(purpose=TRAIN, event=steps, times=job.federation.rounds)


def _counts(job: Job, rows_per_unit: int) -> tuple[Allotment, ...]:
    return tuple(one.allotment for one in plan_counts(job, rows_per_unit=rows_per_unit))


def _beside_training(job: Job, rows_per_unit: int) -> tuple[Allotment, ...]:
    """The head's centre and the counts that are paid together with training."""
    together = job.privacy.adjacency == "replace-one"
    counts = (one for one in _counts(job, rows_per_unit) if together or one.event.population == "train")
    return (*_center(job), *counts)


def _center(job: Job) -> tuple[Allotment, ...]:
    center = plan_center(job)
    return () if center is None else (center,)


def _cost(job: Job, paid: Sequence[Allotment]) -> float:
    return epsilon(paid, delta=job.privacy.delta, adjacency=job.privacy.adjacency)


def _with(job: Job, *, rounds: int | None = None, batch_size: int | None = None) -> Job:
    federation = job.federation if rounds is None else job.federation.model_copy(update={"rounds": rounds})
    training = job.training if batch_size is None else job.training.model_copy(update={"batch_size": batch_size})
    return job.model_copy(update={"federation": federation, "training": training})


def _budget(job: Job) -> float:
    if job.privacy.mode == "none" or job.privacy.epsilon is None:
        raise _not_private()
    return job.privacy.epsilon


def _most(fits: Callable[[int], bool], most: int) -> int:
    """The largest number up to ``most`` that fits, for something that stays false once it is false; 0 when 1 does not."""
    if most < 1 or not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _not_private() -> FedethosError:
    return FedethosError(
        "PRIV-332",
        "privacy.mode is none: there is no budget to plan.",
        where="privacy.mode",
        fix="Plan with --set privacy.mode=local --set privacy.epsilon=8.",
    )
