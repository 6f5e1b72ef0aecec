"""A node's own key, EC P-384 in an OpenSSH file: it opens the connection, and it signs approvals.

Flower's loader takes the same file (``ssh-keygen -t ecdsa -b 384`` writes one). A key that others on the machine may read is refused.
"""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat, load_ssh_private_key

from fedethos.errors import FedethosError
from fedethos.storage import sync_folder, write_errors

_MOST_BYTES = 16_384


def write_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Make a key and write it with mode 0600. SEC-622 when the file is there already; RUN-904 or RUN-905 when it cannot be written."""
    key = ec.generate_private_key(ec.SECP384R1())
    content = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    with write_errors(path):
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise FedethosError(
                "SEC-622",
                "There is a key file already.",
                where=str(path),
                why="Another key in its place would lock this site out and void its approvals.",
                fix="To exchange it on purpose: fedethos client rotate-key.",
            ) from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    return key


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a node's key.

    Raises
    ------
    FedethosError
        SEC-620 when others may read or write the file, SEC-621 when it is no EC P-384 key without passphrase, or not there.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise _no_key(path, f"cannot be opened ({type(error).__name__})") from None
    if mode & 0o077:
        raise FedethosError(
            "SEC-620",
            f"The key file may be read by others on this machine (mode {mode:04o}).",
            where=str(path),
            why="Whoever has the key can speak as this site.",
            fix=f"chmod 600 {path.name}; if others had access, also exchange the key: fedethos client rotate-key.",
        )
    try:
        key = load_ssh_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _no_key(path, "is not an OpenSSH private key without passphrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise _no_key(path, "is not of the curve P-384")
    return key


def public_line(key: ec.EllipticCurvePrivateKey) -> str:
    """The public key as one OpenSSH line, for the coordinator's trust.yaml."""
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def fingerprint(key: ec.EllipticCurvePrivateKey) -> str:
    """SHA-256 of the public key as ``ssh-keygen -l`` prints it, to compare over the telephone."""
    blob = base64.b64decode(public_line(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _no_key(path: Path, how: str) -> FedethosError:
    return FedethosError(
        "SEC-621",
        f"The key file {how}.",
        where=str(path),
        why="Without its key this site cannot connect, and no approval counts.",
        fix="Put the key back from the back-up, or make a new one and send its public half to the coordinator: fedethos client rotate-key.",
    )
