"""``site.yaml``: what a site decides for itself. It stays at the site and is never sent.

Where the site's data are, which ledger account pays for them, and how much may be spent. A site can only tighten a job: it
names its own file and raw values, never another contract. Read with ``fedethos.documents``.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.caps import Caps
from fedethos.documents import load_document
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.job_data import Data
from fedethos.section import PositiveFloat, Section

_HOURS = re.compile(r"^([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)$")


class SiteData(Section):
    path: str = Field(description="The site's records; in place of the job's data.path. Relative paths start from site.yaml's folder.")
    map: dict[str, dict[str, str | None]] = Field(
        default_factory=dict,
        description="Per column: raw value to declared category, or to null for missing; replaces the job's data.map for that column.",
    )
    removed: str | None = Field(
        None, description="A file that lists people whose records are taken out before anything else; see docs/operate-a-node.md."
    )


class Coordinator(Section):
    """Where this node connects to. It only connects outwards; nothing listens here."""

    address: str = Field(pattern=r"^[A-Za-z0-9.:\[\]-]{1,253}:\d{1,5}$", description="HOST:PORT of the coordinator.")
    ca: str | None = Field(None, description="PEM file of the authority that signed the coordinator's certificate, such as your company's.")
    insecure: bool = Field(False, description="No TLS: on this machine (127.0.0.1, ::1, localhost) only, for a trial.")
    proxy: str | None = Field(
        None, pattern=r"^http://[A-Za-z0-9.:\[\]-]{1,253}:\d{1,5}/?$", description="Your HTTP proxy, http://HOST:PORT; null: none."
    )

    @property
    def host(self) -> str:
        """Without port and brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    @model_validator(mode="after")
    def _encrypted_beyond_this_machine(self) -> Coordinator:
        if self.insecure and not _is_loopback(self.host):
            raise PydanticCustomError("CFG-401", "coordinator.insecure is for this machine alone: whatever leaves it needs TLS.")
        if not self.insecure and self.ca is None:
            raise PydanticCustomError("CFG-402", "coordinator.ca is missing: without it no certificate can be checked.")
        if not 0 < self.port < 65_536:
            raise PydanticCustomError("CFG-403", "coordinator.address has no port between 1 and 65535.")
        if self.proxy is not None and not 0 < int(self.proxy.rstrip("/").rpartition(":")[2]) < 65_536:
            raise PydanticCustomError("CFG-403", "coordinator.proxy has no port between 1 and 65535.")
        return self


class SiteDocument(Section):
    """The whole site.yaml."""

    schema_: Literal["fedethos/site/v1"] = Field("fedethos/site/v1", alias="schema")
    account: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        description="The ledger account of this population. The same people, the same account, whatever file they come in.",
    )
    data: SiteData
    caps: Caps
    split_salt: str = Field(
        min_length=16, description="Secret salt of the split's hash. Never change it: people would move between training and test."
    )
    ledger: str = Field("ledger.sqlite", description="The privacy ledger, relative to site.yaml's folder. Keep it on a local disk.")

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$", description="This site's name in the job (federation.sites). A node needs one."
    )
    coordinator: Coordinator | None = Field(None, description="The server of the federation. A node needs one.")
    key: str = Field("node.key", description="This node's own key (EC P-384, OpenSSH format, mode 0600).")
    state: str = Field("state", description="Folder for approvals, the record of what left, incidents and the control socket.")
    log: str = Field("log", description="Folder for the node's log files.")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda:\d{1,2})$", description="auto (a GPU where there is one), cpu, or cuda:N.")
    memory_gb: PositiveFloat | None = Field(None, description="The most memory that training may take; null: no limit of ours.")
    hours: str | None = Field(
        None, description="When training may run, local time, such as 20:00-06:00; null: always. Other requests are answered at any hour."
    )
    model: str | None = Field(None, description="Folder of the base model here, in place of the job's model.path; its hash has to match.")
    allow_unprotected: bool = Field(
        False, description="Whether a job without differential privacy (privacy.mode: none) may run, which sends exact updates and counts."
    )

    @model_validator(mode="after")
    def _hours_are_hours(self) -> SiteDocument:
        if self.hours is not None and _HOURS.match(self.hours) is None:
            raise PydanticCustomError("CFG-404", "hours is not of the form HH:MM-HH:MM, such as 20:00-06:00.")
        return self

    def as_node(self) -> tuple[str, Coordinator]:
        """Name and coordinator, which a node needs and a mere check of data does not. CFG-400 when one is missing."""
        if self.name is None or self.coordinator is None:
            missing = "name" if self.name is None else "coordinator"
            raise FedethosError(
                "CFG-400", f"site.yaml has no `{missing}`, so this is no node.", where=missing, fix="fedethos client init FOLDER"
            )
        return self.name, self.coordinator

    def may_train_at(self, now: datetime) -> bool:
        """Whether ``now`` (with its zone) is inside ``hours``, which are local and may go over midnight."""
        match = _HOURS.match(self.hours or "")
        if match is None:
            return True
        begin, end = time(int(match[1]), int(match[2])), time(int(match[3]), int(match[4]))
        clock = now.astimezone().time().replace(tzinfo=None)
        return begin <= clock < end if begin < end else clock >= begin or clock < end

    def contract(self, data: Data) -> Data:
        """The job's data contract with this site's file, raw values and salt in it."""
        update = {"path": self.data.path, "map": {**data.map, **self.data.map}, "split_salt": self.split_salt}
        return data.model_copy(update=update)

    def local(self, job: Job) -> Job:
        """``job`` as it is read here: this site's file, raw values, salt and model folder. Its hash is no longer the approved one."""
        model = job.model if self.model is None else job.model.model_copy(update={"path": self.model})
        return job.model_copy(update={"data": self.contract(job.data), "model": model})


def load_site(path: Path, overrides: Sequence[str] = ()) -> SiteDocument:
    """Read ``site.yaml``. Refusals as in ``fedethos.documents.load_document``, and CFG-225."""
    return load_document(SiteDocument, path, overrides)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
