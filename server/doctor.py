"""``fedethos server doctor``: what would stop a coordinator, found before it is started. Each check says what to do."""

from __future__ import annotations

import ipaddress
import shutil
import socket
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedethos.control.calling import is_healthy
from fedethos.errors import FedethosError
from fedethos.server.places import Places
from fedethos.server_document import ServerFolder
from fedethos.trust import load_trust

_SOON = timedelta(days=30)
_LEAST_FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """``ok`` None: worth knowing, stops nothing."""

    check: str
    ok: bool | None
    what: str
    fix: str = ""


def examine(server: ServerFolder, now: datetime | None = None) -> list[Finding]:
    """All checks, in the order in which a person would mend them."""
    now = now or datetime.now(UTC)
    checks: tuple[Callable[[ServerFolder, datetime], Iterator[Finding]], ...] = (_certificate, _key, _trust, _state, _port)
    return [finding for check in checks for finding in check(server, now)]


def _certificate(server: ServerFolder, now: datetime) -> Iterator[Finding]:
    try:
        certificate = x509.load_pem_x509_certificates(server.certificate.read_bytes())[0]
    except (OSError, ValueError, IndexError):
        yield Finding("certificate", False, f"{server.certificate} is no PEM certificate that can be read.", "Set certificate.")
        return
    until = certificate.not_valid_after_utc
    if not certificate.not_valid_before_utc <= now <= until:
        yield Finding("certificate", False, f"It is valid until {until:%Y-%m-%d}, not now: no site will connect.", "Renew it.")
    elif until - now < _SOON:
        yield Finding("certificate", None, f"It expires on {until:%Y-%m-%d}.", "Renew it before, then restart the coordinator.")
    else:
        yield Finding("certificate", True, f"valid until {until:%Y-%m-%d}")
    names = _names(certificate)
    yield Finding(
        "certificate's names",
        bool(names),
        ", ".join(names) if names else "It has no subject alternative name: no client accepts it.",
        "" if names else "Ask your authority for one with subjectAltName.",
    )
    usage = _usage(certificate)
    if usage is not None and ExtendedKeyUsageOID.SERVER_AUTH not in usage:
        yield Finding("certificate's usage", False, "extendedKeyUsage lacks serverAuth.", "Ask your authority for a server certificate.")


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _usage(certificate: x509.Certificate) -> x509.ExtendedKeyUsage | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return None


def _key(server: ServerFolder, now: datetime) -> Iterator[Finding]:
    try:
        key = load_pem_private_key(server.key.read_bytes(), password=None)
        certificate = x509.load_pem_x509_certificates(server.certificate.read_bytes())[0]
    except (OSError, ValueError, TypeError, IndexError):
        yield Finding("private key", False, f"{server.key} is no PEM key without a password that can be read.", "Set key.")
        return
    ours, theirs = (
        one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) for one in (key.public_key(), certificate.public_key())
    )
    if ours != theirs:
        yield Finding("private key", False, "It is not the key of the certificate.", "Set key and certificate to a pair.")
    elif stat.S_IMODE(server.key.stat().st_mode) & 0o077:
        yield Finding("private key", False, "Others can read it.", f"chmod 600 {server.key}")
    else:
        yield Finding("private key", True, "belongs to the certificate, readable by its owner alone")


def _trust(server: ServerFolder, now: datetime) -> Iterator[Finding]:
    try:
        trust = load_trust(server.trust)
    except FedethosError as refusal:
        yield Finding("trust.yaml", False, f"{refusal.code} {refusal.what}", refusal.fix)
        return
    valid = trust.keys_on(now.date())
    silent = sorted(set(trust.sites) - set(valid))
    yield Finding("trust.yaml", True if valid else None, f"version {trust.version}, {len(valid)} sites with a valid key")
    if silent:
        yield Finding("keys", None, f"Not answered today: {', '.join(silent)}.", "They are revoked or outside their days.")
    soon = (now + _SOON).date()
    if ending := sorted(set(valid) - set(trust.keys_on(soon))):
        yield Finding("keys", None, f"End within 30 days: {', '.join(ending)}.", "Ask these sites for a new key.")


def _state(server: ServerFolder, now: datetime) -> Iterator[Finding]:
    place = next(path for path in (server.state, *server.state.parents) if path.exists())
    free = shutil.disk_usage(place).free
    yield Finding(
        "disk", free >= _LEAST_FREE_BYTES, f"{free / 1e9:.1f} GB free for {server.state}", "" if free >= _LEAST_FREE_BYTES else "Free some."
    )
    database = server.state / "superlink" / "superlink.sqlite"
    if database.exists():
        yield Finding("database", *_integrity(database))


def _integrity(database: Path) -> tuple[bool, str, str]:
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            answer = connection.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error:
        answer = "unreadable"
    if answer == "ok":
        return True, "whole", ""
    return False, "The SuperLink's database is damaged.", f"Stop the coordinator and delete {database}: the runs are not in it and go on."


def _port(server: ServerFolder, now: datetime) -> Iterator[Finding]:
    host, port = server.address
    if Places(server.state).socket.exists() and is_healthy(Places(server.state).socket, timeout=2.0):
        yield Finding("coordinator", True, f"runs, at {server.document.address}")
        return
    try:
        with socket.create_server((host, port), family=_family(host)):
            yield Finding("address", True, f"{server.document.address} is free")
    except OSError as error:
        fix = "Stop the program that listens there, or set another address."
        yield Finding("address", False, f"{server.document.address} cannot be listened on ({type(error).__name__}).", fix)


def _family(host: str) -> socket.AddressFamily:
    try:
        return socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    except ValueError:
        return socket.AF_INET
