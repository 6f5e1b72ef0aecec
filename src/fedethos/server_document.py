"""``server.yaml``: what a coordinator decides for its own machine. Paths are relative to the document's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from fedethos import yamltext
from fedethos.certificates import write_private
from fedethos.documents import load_document
from fedethos.errors import FedethosError
from fedethos.section import Section


class ServerDocument(Section):
    """The whole server.yaml."""

    schema_: Literal["fedethos/server/v1"] = Field("fedethos/server/v1", alias="schema")
    address: str = Field(
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$",
        description="Where the gateway listens, host:port, such as 0.0.0.0:9443. The only port that needs to be open.",
    )
    certificate: str = Field(
        description="The gateway's TLS certificate (PEM, with what leads to the CA), valid for the name that the sites use."
    )
    key: str = Field(description="Its private key (PEM), readable by its owner alone.")
    trust: str = Field("trust.yaml", description="The sites and their keys.")
    state: str = Field("state", description="Folder of runs, database and logs. Keep it on a local disk, and back it up.")
    notify: list[str] | None = Field(
        None,
        min_length=1,
        description="A program and its arguments, started on every event with the event as JSON on its standard input. No shell.",
    )
    quarantine_after: int = Field(3, ge=1, le=1000, description="A site refused this often in a run is not asked again in it.")


@dataclass(frozen=True)
class ServerFolder:
    """A ``server.yaml`` and where its paths lead."""

    document: ServerDocument
    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / self.document.certificate

    @property
    def key(self) -> Path:
        return self.folder / self.document.key

    @property
    def trust(self) -> Path:
        return self.folder / self.document.trust

    @property
    def state(self) -> Path:
        return self.folder / self.document.state

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.document.address.rpartition(":")
        return host.strip("[]"), int(port)


def load_server(path: Path) -> ServerFolder:
    """Read ``server.yaml``. Refusals as in ``fedethos.documents.load_document``."""
    return ServerFolder(load_document(ServerDocument, path), path.resolve().parent)


def write_server(folder: Path, *, address: str, certificate: str, key: str) -> Path:
    """Write ``server.yaml`` and an empty ``trust.yaml`` into ``folder``; the path of the first.

    Raises
    ------
    FedethosError
        CFG-379 when one of them is there already.
    """
    server, trust = folder / "server.yaml", folder / "trust.yaml"
    if server.exists() or trust.exists():
        raise FedethosError(
            "CFG-379", "There is a server.yaml or trust.yaml already.", where=str(folder), fix="Edit it, or name another folder."
        )
    document = ServerDocument(address=address, certificate=certificate, key=key)
    folder.mkdir(parents=True, exist_ok=True)
    write_private(server, yamltext.render(document.model_dump(mode="json", by_alias=True)).encode())
    write_private(trust, yamltext.render({"schema": "fedethos/trust/v1", "version": 1, "sites": {}, "revoked": []}).encode())
    return server
