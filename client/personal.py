"""Ditto: beside the global adapter each site keeps one of its own, which never leaves it (``training.personal``).

Li, Hu, Beirami & Smith 2021 ("Ditto: Fair and Robust Federated Learning Through Personalization", algorithm 1): with the round's
global adapter w, the site's own one v goes on from where it was,

    v <- v - eta (grad F(v) + lambda (v - w)),

on the same loss F, weights and groups as the global adapter, with Poisson batches of its own. lambda is
``training.personal.proximal_mu``; the first v is the first w that the site receives. What the aggregation rule leaves at rest in a
round, or a head warm-up, rests in v too.

What epsilon says about v: without ``release_counts`` v trains without noise. Nothing that leaves the site depends on it, so what
leaves keeps the job's epsilon, and v itself has none: whoever sees v, or its answers, sees through to the site's records. With
``release_counts`` the counts of other people would carry the training people out, so v trains with the job's noise, and its steps
are charged together with those of the global adapter (``Job.charged_steps``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedethos.client.examples import Examples
from fedethos.client.model import NodeModel
from fedethos.client.trainer import Pull, SourceOfStep, StepPlan, train_round
from fedethos.errors import FedethosError
from fedethos.fairness.losses import ExampleLoss
from fedethos.job import Training
from fedethos.messages import Arrays
from fedethos.privacy.engine import ClippingEngine
from fedethos.storage import write_atomically, write_errors

KEPT = 4
"""Versions that stay: a coordinator keeps three checkpoints, so it may go back by two rounds and ask for the one after them again."""

incidents = logging.getLogger("fedethos.incidents")  # local only

_NAME = re.compile(r"round-(\d{4,})\.safetensors")


@dataclass(frozen=True)
class PersonalAdapter:
    """A site's own adapter in ``folder``, one file for each of the last rounds that the site trained in."""

    folder: Path

    def at(self, round: int) -> Arrays | None:
        """As it was after ``round``; None when the site had not trained by then.

        Raises
        ------
        FedethosError
            NODE-560 for a damaged file.
        """
        known = [(number, path) for number, path in self._versions() if number <= round]
        if not known:
            return None
        path = known[-1][1]
        try:
            arrays: Arrays = load(path.read_bytes())
        except (OSError, SafetensorError):
            raise FedethosError(
                "NODE-560",
                "The site's personal adapter cannot be read.",
                where=str(path),
                why="Starting it anew would silently lose what it has learnt.",
                fix="Restore the file from a copy, or delete the folder to start the personal adapter anew.",
            ) from None
        return arrays

    def keep(self, round: int, arrays: Arrays) -> None:
        """Write the version of ``round`` for its owner alone. Later ones belong to a future that was abandoned, and go.

        Raises
        ------
        FedethosError
            RUN-904 or RUN-905 when the disk does not take it.
        """
        with write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(self.folder / f"round-{round:04d}.safetensors", save(arrays))
            versions = self._versions()
            earlier = [path for number, path in versions if number <= round]
            for path in earlier[:-KEPT] + [path for number, path in versions if number > round]:
                path.unlink()

    def _versions(self) -> list[tuple[int, Path]]:
        """Oldest first."""
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("round-*.safetensors"))
        return sorted((int(match[1]), path) for match, path in found if match)


def personal_training(training: Training) -> Training:
    """How the personal adapter trains: as the global one, with ``training.personal`` in place of its own keys."""
    personal = training.personal
    if personal is None:
        return training
    own = {
        "proximal_mu": personal.proximal_mu,
        "local_steps": personal.local_steps or training.local_steps,
        "learning_rate": personal.learning_rate or training.learning_rate,
        "iterate_average": "none",
    }
    return training.model_copy(update=own)


@contextmanager
def unnoticed(round: int) -> Iterator[None]:
    """Whatever fails inside goes into the site's own log, and the adapter stays as it was before ``round``.

    For an adapter without noise: whether its training diverged is data, and the code of an error would carry it out uncharged.
    """
    try:
        yield
    except Exception as failure:
        incidents.error("The personal adapter did not train in round %d.", round, exc_info=failure)


def train_personal(
    adapter: PersonalAdapter,
    model: NodeModel,
    *,
    training: Training,
    round: int,
    sent: Arrays,
    names: Collection[str],
    examples: Examples,
    plan: StepPlan,
    engine: ClippingEngine,
    source_of: SourceOfStep,
    loss: ExampleLoss,
    pull: Pull | None = None,
) -> None:
    """One round of the personal adapter, from its last version (else ``sent``, the round's global adapter) to its next one.

    ``names``: what trains in this round. ``model`` holds the personal adapter afterwards.
    """
    model.load(adapter.at(round - 1) or sent)
    with model.training(names):
        train_round(model, examples, personal_training(training), plan, engine, source_of, loss, towards=sent, pull=pull)
    adapter.keep(round, model.read())
