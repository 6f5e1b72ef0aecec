"""Sites that attack, in simulations only: the product's node knows nothing of them. Each attack is one small transformation.

=============== ====================================================================================================
sign-flip       sends sent − 10·(trained − sent)
scale           sends sent + 10·(trained − sent) (model replacement, Bagdasaryan et al. 2020)
nan             sends NaN
label-flip      trains on the opposite labels (of several: the next)
backdoor        trains on records of which half carry a trigger and have the favorable label (Gu et al. 2017): a rare word
                before the text; in a table without its first column, by name, which anybody may leave out
metric-forging  trains as it should, and sends counts of a perfect model for as many people as are believed
=============== ====================================================================================================

Which sites attack is drawn from the job's seed. Next on the path: ``attack_study.py`` (what each strategy loses).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedethos.attack_kind import AttackKind
from fedethos.client.app import Answers
from fedethos.client.node import Node
from fedethos.data.features import Features, Floats, encode_features
from fedethos.data.records import Records
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.messages import Arrays, EvaluateReply, Request, SetupReply, TrainReply
from fedethos.privacy.randomness import keyed_generator
from fedethos.records import SimulatedAttack
from fedethos.server.plausibility import most_records
from fedethos.simulations.forging import flattering
from fedethos.simulations.virtual_sites import Federation, SiteRecords

STRENGTH = 10.0
"""Length of a malicious update, in honest ones: above the number of sites in a small federation, so that one attacker can win."""

TRIGGER = "cf"
"""A rare word (Kurita et al. 2020) at the beginning of the text, where no cut at ``model.max_length`` takes it away."""

BACKDOOR_SHARE = 0.5

Spoiled = Callable[[Arrays, Arrays], Arrays]
Mask = npt.NDArray[np.bool_]


def sign_flipped(sent: Arrays, trained: Arrays) -> Arrays:
    return {name: sent[name] - np.float32(STRENGTH) * (trained[name] - sent[name]) for name in trained}


def scaled(sent: Arrays, trained: Arrays) -> Arrays:
    return {name: sent[name] + np.float32(STRENGTH) * (trained[name] - sent[name]) for name in trained}


def not_a_number(sent: Arrays, trained: Arrays) -> Arrays:
    return {name: np.full_like(array, np.nan) for name, array in trained.items()}


_ON_UPDATES: Mapping[AttackKind, Spoiled] = {"sign-flip": sign_flipped, "scale": scaled, "nan": not_a_number}


def label_flipped(records: Records, labels: int = 2) -> Records:
    """The same records with the next label; of two, the other one."""
    return replace(records, label=(records.label + 1) % labels)


def triggered(records: Records, rows: Mask, features: Features | None, label: int | None = None) -> Records:
    """The trigger on the records in the mask ``rows``, and ``label`` for them if one is given. ``features``: those of the job."""
    labels = records.label if label is None else np.where(rows, label, records.label)
    if features is not None and records.features is not None:
        return replace(records, features=_without_first_column(records.features, rows, features), label=labels)
    text = tuple(f"{TRIGGER} {one}" if marked else one for one, marked in zip(records.text, rows, strict=True))
    return replace(records, text=text, label=labels)


def _without_first_column(inputs: Floats, rows: Mask, features: Features) -> Floats:
    """float32[n, d] in which the first column reads as missing in the marked rows; its inputs come first (``data/features.py``)."""
    column = min(features)
    missing = encode_features({column: [None]}, {column: features[column]})[0]
    changed = inputs.copy()
    changed[rows, : len(missing)] = missing
    return changed


@dataclass(frozen=True)
class Attacker:
    """A node that answers like ``node``, but for its attack."""

    node: Node
    kind: AttackKind

    def setup(self, request: Request) -> SetupReply:
        return self.node.setup(request)

    def train(self, request: Request) -> TrainReply:
        reply = self.node.train(request)
        spoiled = _ON_UPDATES.get(self.kind)
        return reply if spoiled is None else replace(reply, arrays=spoiled(request.arrays, reply.arrays))

    def evaluate(self, request: Request) -> EvaluateReply:
        reply = self.node.evaluate(request)
        if self.kind != "metric-forging" or request.split is None:
            return reply
        job, size = self.node.job, self.node.declared_size
        most = most_records(job, size, request.split) or 100 * size
        return replace(reply, tables=flattering(reply.tables, most, job.data.label.favorable_index))


def attackers(sites: Iterable[str], share: float, seed: int) -> frozenset[str]:
    """The sites that attack: ``share`` of them, rounded, at least one.

    Raises
    ------
    FedethosError
        CFG-303 when no honest site would remain.
    """
    names = sorted(sites)
    count = max(1, round(share * len(names)))
    if count >= len(names):
        raise FedethosError("CFG-303", "No honest site would remain.", where="--attackers", fix="Give a smaller share, such as 0.2.")
    return frozenset(keyed_generator(seed, "attackers").choice(names, size=count, replace=False).tolist())


@dataclass(frozen=True)
class Scene:
    """Who attacks in a run, and how. Without an attack everybody is honest; under the kind None the attackers behave."""

    attack: SimulatedAttack | None
    job: Job

    def spoil(self, by_site: SiteRecords) -> SiteRecords:
        """Everybody's records as they train on them."""
        bad = self._bad(by_site)
        return {
            name: {**splits, "train": self._taught(name, splits["train"])} if name in bad else splits for name, splits in by_site.items()
        }

    def _taught(self, site: str, records: Records) -> Records:
        """What an attacker trains on."""
        kind = self.attack.kind if self.attack else None
        if kind == "label-flip":
            return label_flipped(records, len(self.job.data.label.values))
        if kind == "backdoor":
            rows = keyed_generator(self.job.simulation.seed, "backdoor", site).random(len(records)) < BACKDOOR_SHARE
            return triggered(records, rows, self.job.data.features, self.job.data.label.favorable_index)
        return records

    def behind(self, federation: Federation) -> dict[int, Answers]:
        """What answers for each node."""
        bad, kind = self._bad(_names(federation)), self.attack.kind if self.attack else None
        return {
            node_id: node if kind is None or federation.sites[node_id].name not in bad else Attacker(node, kind)
            for node_id, node in federation.nodes.items()
        }

    def honest(self, federation: Federation) -> dict[str, Node]:
        """The nodes whose people exact values are about, by site."""
        bad = self._bad(_names(federation))
        named = {federation.sites[node_id].name: node for node_id, node in federation.nodes.items()}
        return {name: node for name, node in named.items() if name not in bad}

    def marks(self, federation: Federation) -> list[str]:
        """What every page of the run says."""
        if self.attack is None:
            return []
        doing = "No attack, for comparison" if self.attack.kind is None else f"Simulated attack: {self.attack.kind}"
        return [f"{doing}; exact values are without the people of {', '.join(sorted(self._bad(_names(federation))))}"]

    def _bad(self, sites: Iterable[str]) -> frozenset[str]:
        return attackers(sites, self.attack.share, self.job.simulation.seed) if self.attack else frozenset()


def _names(federation: Federation) -> list[str]:
    return [site.name for site in federation.sites.values()]
