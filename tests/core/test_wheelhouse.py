"""``scripts/wheelhouse.py``: what it writes is what pip checks."""

import subprocess
import sys
import zipfile
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/wheelhouse.py"


def wheel(folder: Path, name: str, version: str) -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False)


def install(folder: Path, into: Path) -> subprocess.CompletedProcess[str]:
    offline = ["--no-index", "--find-links", str(folder), "--require-hashes", "-r", str(folder / "requirements.txt"), "--target", str(into)]
    return subprocess.run([sys.executable, "-m", "pip", "install", *offline], capture_output=True, text=True, check=False)


def test_pip_installs_from_it_without_a_network_and_only_what_was_put_there(tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    wheel(house, "quite_small", "1.0")
    second = wheel(house, "another", "2.0+cpu")
    assert build(house).returncode == 0
    lines = [line for line in (house / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line.split(" --hash=sha256:")[0] for line in lines] == ["another==2.0+cpu", "quite-small==1.0"]
    assert install(house, tmp_path / "good").returncode == 0
    assert (tmp_path / "good/quite_small.py").exists()
    with zipfile.ZipFile(second, "a") as archive:
        archive.writestr("more.py", "")
    refused = install(house, tmp_path / "bad")
    assert refused.returncode != 0
    assert "hash" in refused.stderr.lower()


def test_two_wheels_of_one_package_are_a_mistake(tmp_path: Path) -> None:
    wheel(tmp_path, "twice", "1.0")
    wheel(tmp_path, "twice", "2.0")
    done = build(tmp_path)
    assert done.returncode != 0
    assert not (tmp_path / "requirements.txt").exists()
