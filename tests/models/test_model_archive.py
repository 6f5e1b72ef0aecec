"""Archives from outside: only the model's files come out, and never outside the folder."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from fedethos.errors import FedethosError
from fedethos.models.archive import unpack


def archive(path: Path, members: dict[str, bytes], *, link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK if name == link else stat.S_IFREG) << 16
            out.writestr(info, content)
    return path


def refused(tmp_path: Path, source: Path) -> bool:
    with pytest.raises(FedethosError) as caught:
        unpack(source, "pkg/model", tmp_path / "out", limit=1000)
    return caught.value.code == "SEC-605"


def test_only_the_models_files_come_out(tmp_path: Path) -> None:
    members = {
        "pkg/__init__.py": b"code",
        "pkg/model/config.json": b"{}",
        "pkg/model/run.py": b"code",
        "pkg/model/sub/vocab.txt": b"x",
        "vocab.txt": b"x",
    }
    unpack(archive(tmp_path / "a.whl", members), "pkg/model", tmp_path / "out", limit=1000)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["../config.json", "/config.json", "pkg/model/../../config.json", "pkg\\model\\config.json"])
def test_climbing_paths(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, archive(tmp_path / "a.whl", {"pkg/model/vocab.txt": b"x", name: b"{}"}))


def test_links(tmp_path: Path) -> None:
    name = "pkg/model/config.json"
    assert refused(tmp_path, archive(tmp_path / "a.whl", {name: b"/etc/passwd"}, link=name))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as out:
        out.writestr("pkg/model/config.json", "{}")
        out.writestr("pkg/model/config.json", "[]")
    assert refused(tmp_path, tmp_path / "a.whl")


def test_size_bombs_declared_and_hidden(tmp_path: Path) -> None:
    bomb = archive(tmp_path / "a.whl", {"pkg/model/vocab.txt": bytes(600), "pkg/model/config.json": bytes(600)})
    assert refused(tmp_path, bomb)
    (tmp_path / "out").rmdir()
    lying = bomb.read_bytes().replace((600).to_bytes(4, "little"), (6).to_bytes(4, "little"))
    bomb.write_bytes(lying)
    assert refused(tmp_path, bomb)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 12


def test_damage(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"no zip")
    assert refused(tmp_path, tmp_path / "a.whl")
