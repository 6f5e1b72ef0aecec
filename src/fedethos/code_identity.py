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
    root = Path(fedethos.__file__).parent
    digest = hashlib.sha256()
    for name in sorted(_files(root)):
        content = (root / name).read_bytes()
        digest.update(f"{name}|{len(content)}|".encode())
        digest.update(content)
    return digest.hexdigest()


def _files(root: Path) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root, followlinks=True):  # a checkout has the rooms as links
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [(Path(folder) / name).relative_to(root).as_posix() for name in files if name.endswith(_SUFFIXES)]
    return found
