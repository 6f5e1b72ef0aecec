"""``site.yaml``: what a site decides for itself. It stays at the site and is never sent.

Where the site's data are, which ledger account pays for them, and how much may be spent. A site can only tighten a job: it
names its own file and raw values, never another contract. Read with ``fedethos.documents``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedethos.caps import Caps
from fedethos.documents import load_document
from fedethos.job_data import Data
from fedethos.section import Section


class SiteData(Section):
    path: str = Field(description="The site's records; in place of the job's data.path. Relative paths start from site.yaml's folder.")
    map: dict[str, dict[str, str | None]] = Field(
        default_factory=dict,
        description="Per column: raw value to declared category, or to null for missing; replaces the job's data.map for that column.",
    )


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

    def contract(self, data: Data) -> Data:
        """The job's data contract with this site's file, raw values and salt in it."""
        update = {"path": self.data.path, "map": {**data.map, **self.data.map}, "split_salt": self.split_salt}
        return data.model_copy(update=update)


def load_site(path: Path, overrides: Sequence[str] = ()) -> SiteDocument:
    """Read ``site.yaml``. Refusals as in ``fedethos.documents.load_document``, and CFG-225."""
    return load_document(SiteDocument, path, overrides)
