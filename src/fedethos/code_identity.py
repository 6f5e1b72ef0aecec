"""Which fedethos runs here: one hash over the installed package's files. A site approves a job for this code and no other.

The same for a wheel and for a checkout of the same version: only names inside the package and the bytes of the files count.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import fedethos

_SUFFIXES = (".py", ".yaml", ".txt")  # code, and the data files that change what it does


def code_sha256() -> str:
    """SHA-256 over names and bytes of the package's files, 64 hex digits, as they are on the disk now."""
    root = str(Path(fedethos.__file__).parent)
    digest = hashlib.sha256()
    for name in sorted(_files(root)):
        with open(f"{root}/{name}", "rb") as file:  # noqa: PTH123 - a node asks for each message, and paths take as long as the hash
            content = file.read()
        digest.update(f"{name}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()


def _files(root: str) -> list[str]:
    found: list[str] = []
    for folder, folders, files in os.walk(root, followlinks=True):  # a checkout has the rooms as links
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [f"{folder}/{name}".removeprefix(f"{root}/") for name in files if name.endswith(_SUFFIXES)]
    return found
