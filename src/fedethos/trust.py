"""``trust.yaml``: the sites that a coordinator knows, each by the public key of its node.

The coordinator's gateway answers the keys that are valid now and nobody else. A site that changes its key gets another
``public_key`` here; a key under ``revoked`` is refused whatever else the document says.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key, load_ssh_public_key
from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from fedethos.documents import load_document
from fedethos.section import Section


def public_key_pem(text: str) -> bytes:
    """An EC P-384 public key, OpenSSH line or PEM, as the PEM bytes that name it everywhere.

    Raises
    ------
    ValueError
        When it is no such key.
    """
    data = text.strip().encode()
    try:
        key = load_ssh_public_key(data) if data.startswith(b"ecdsa-") else load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("not a public key") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("not on the curve P-384")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _public_key(text: str) -> str:
    try:
        public_key_pem(text)
    except ValueError:
        raise PydanticCustomError(
            "CFG-370", "A public key is not an EC P-384 key as an OpenSSH line (ecdsa-sha2-nistp384 …) or as PEM."
        ) from None
    return text


def _day(text: str) -> str:
    try:
        date.fromisoformat(text)
    except ValueError:
        raise PydanticCustomError("CFG-371", "A day in trust.yaml is not written as YYYY-MM-DD.") from None
    return text


PublicKey = Annotated[str, AfterValidator(_public_key)]
Day = Annotated[str, AfterValidator(_day)]


class TrustedSite(Section):
    public_key: PublicKey = Field(description="The node's EC P-384 public key: an OpenSSH line or PEM.")
    valid_from: Day | None = Field(None, description="First day (UTC, quoted YYYY-MM-DD) on which the key is answered; null: always.")
    valid_until: Day | None = Field(None, description="Last day (UTC, quoted YYYY-MM-DD) on which the key is answered; null: for ever.")

    @property
    def pem(self) -> bytes:
        """The key as it is compared everywhere."""
        return public_key_pem(self.public_key)

    def valid_on(self, today: date) -> bool:
        begun = self.valid_from is None or date.fromisoformat(self.valid_from) <= today
        return begun and (self.valid_until is None or today <= date.fromisoformat(self.valid_until))


class Trust(Section):
    """The whole trust.yaml."""

    schema_: Literal["fedethos/trust/v1"] = Field("fedethos/trust/v1", alias="schema")
    version: int = Field(1, ge=1, description="Count up with every change, so that two copies can be told apart.")
    sites: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")], TrustedSite] = Field(
        description="Site name, as in the job's federation.sites, to its key."
    )
    revoked: list[PublicKey] = Field(default_factory=list, description="Keys that are never answered again.")

    @model_validator(mode="after")
    def _one_key_one_site(self) -> Trust:
        keys = [site.pem for site in self.sites.values()]
        if len(set(keys)) != len(keys):
            raise PydanticCustomError("CFG-372", "Two sites of trust.yaml have the same public key.")
        return self

    def keys_on(self, today: date) -> Mapping[str, bytes]:
        """Site name to the PEM of its key, for every site whose key is valid and not revoked."""
        revoked = {public_key_pem(key) for key in self.revoked}
        keys = {name: site.pem for name, site in self.sites.items() if site.valid_on(today)}
        return {name: key for name, key in keys.items() if key not in revoked}


def load_trust(path: Path) -> Trust:
    """Read ``trust.yaml``. Refusals as in ``fedethos.documents.load_document``, and CFG-370 to CFG-372."""
    return load_document(Trust, path)
