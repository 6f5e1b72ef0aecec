"""All that a trial needs on one machine or in one compose file: an authority, a server certificate, a key for each site, documents.

Not for production: one machine sees every private key, and the authority's key is thrown away, so nothing can be renewed.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from fedethos import yamltext
from fedethos.certificates import make_authority, make_node_key, make_server_certificate, write_private
from fedethos.errors import FedethosError

DAYS = 30.0
_MARK = "# Made by `fedethos keys trial` for a trial. Not for production.\n"
_README = """Made by `fedethos keys trial` for a trial. Not for production: this machine has seen every private key.

server/     the coordinator: fedethos server start --server server/server.yaml
SITE/       one folder for each site: fedethos client approve job.yaml SITE/site.yaml, then fedethos client start SITE/site.yaml
job.yaml    a job on the records of the sites (UCI Adult, CC BY 4.0): fedethos server submit job.yaml --server server/server.yaml
"""


def make_trial(folder: Path, *, sites: Sequence[str], address: str, hosts: Sequence[str], connect: str | None = None) -> None:
    """Write ``folder/server`` and one folder for each site.

    Parameters
    ----------
    address : str
        Where the gateway listens, host:port.
    hosts : sequence of str
        More names or addresses that sites may reach it by.
    connect : str, optional
        host:port that the sites connect to; None: ``address``.

    Raises
    ------
    FedethosError
        CFG-375 when the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise FedethosError(
            "CFG-375", "The folder of the trial is not empty.", where=str(folder), fix="Name another folder, or delete this one first."
        )
    reached = connect or address
    names = dict.fromkeys([reached.rpartition(":")[0].strip("[]"), "127.0.0.1", "localhost", *hosts])
    authority = make_authority("fedethos trial authority, not for production", days=DAYS)
    certificate, key = make_server_certificate(authority, list(names), days=DAYS)
    server = folder / "server"
    server.mkdir(parents=True, mode=0o700)
    (folder / "README.txt").write_text(_README, encoding="utf-8")
    (server / "server.pem").write_bytes(certificate)
    write_private(server / "server.key", key)
    trusted: dict[str, JsonValue] = {}
    for name in sites:
        private, public = make_node_key()
        trusted[name] = {"public_key": public}
        _write_site(folder / name, name, reached, authority.pem, private)
    _write(server / "trust.yaml", {"schema": "fedethos/trust/v1", "version": 1, "sites": trusted, "revoked": []})
    _write(
        server / "server.yaml",
        {
            "schema": "fedethos/server/v1",
            "address": address,
            "certificate": "server.pem",
            "key": "server.key",
            "trust": "trust.yaml",
            "state": "state",
        },
    )


def _write_site(folder: Path, name: str, address: str, ca: bytes, key: bytes) -> None:
    folder.mkdir(mode=0o700)
    (folder / "ca.pem").write_bytes(ca)
    write_private(folder / "node.key", key)
    salt = secrets.token_hex(16)
    _write(
        folder / "site.yaml",
        {
            "schema": "fedethos/site/v1",
            "name": name,
            "account": name,
            "coordinator": {"address": address, "ca": "ca.pem"},
            "key": "node.key",
            "data": {"path": "data.csv"},
            "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
            "split_salt": salt,
        },
    )


def _write(path: Path, document: JsonValue) -> None:
    write_private(path, (_MARK + yamltext.render(document)).encode())
