"""What is built is what stands in the tree: no room missing, nothing under a name that belongs to others, nothing undeclared."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedethos

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
TABLE = PROJECT["tool"]["setuptools"]
ROOMS = {name: folder for name, folder in TABLE["package-dir"].items() if name != "fedethos"}
EXTRAS = PROJECT["project"]["optional-dependencies"]


def _package_files(root: Path) -> dict[str, Path]:
    """Every file that belongs to the import package, by its place in a wheel."""
    files = {}
    for name, folder in TABLE["package-dir"].items():
        for parent, folders, names in os.walk(root / folder):  # does not follow the links of the rooms
            folders[:] = [child for child in folders if child != "__pycache__"]
            inside = PurePosixPath(*name.split("."), Path(parent).relative_to(root / folder).as_posix())
            files |= {str(inside / file): Path(parent, file) for file in names}
    return files


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of a copy of this tree, and the wheel that is built from that sdist alone."""
    copy, dist = tmp_path_factory.mktemp("tree") / "copy", tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns(".*_cache", ".venv", ".git", "build", "dist", "runs", "*.egg-info", "__pycache__", ".hypothesis")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=unwanted)
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(copy)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Deprecat" not in result.stdout + result.stderr
    return next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))


def test_the_table_lists_every_sub_package():
    found = {str(PurePosixPath(place).parent).replace("/", ".") for place in _package_files(ROOT) if place.endswith("/__init__.py")}
    assert sorted(TABLE["packages"]) == sorted(found)


def test_no_code_lies_in_a_folder_that_is_no_package():
    files = _package_files(ROOT)
    assert [place for place in files if place.endswith(".py") and str(PurePosixPath(place).parent / "__init__.py") not in files] == []


def test_every_link_in_the_core_leads_to_its_room():
    links = {path.name: path.readlink().as_posix() for path in (ROOT / "src" / "fedethos").iterdir() if path.is_symlink()}
    if not links:
        pytest.skip("built from an sdist: the links are only in a checkout")
    assert links == {folder: f"../../{folder}" for folder in ROOMS.values()}


def test_the_wheel_holds_every_file_and_nothing_at_top_level(built):
    with zipfile.ZipFile(built[1]) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
    info = f"fedethos-{fedethos.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"fedethos", info}
    assert sorted(name for name in names if not name.startswith(info)) == sorted(_package_files(ROOT))


def test_the_sdist_holds_what_a_rebuild_and_the_tests_need(built):
    with tarfile.open(built[0]) as sdist:
        members = sdist.getmembers()
    names = {member.name.partition("/")[2] for member in members}
    assert not [member.name for member in members if member.issym() or member.islnk()]
    assert {"Makefile", "constraints.txt", "LICENSE", "README.md", ".ci/run", "tests/test_packaging.py", "client/__init__.py"} <= names


def test_the_wheel_works_without_the_repository(built, tmp_path):
    shutil.unpack_archive(built[1], tmp_path / "site", "zip")
    code = (
        "import sys, importlib.resources as resources, fedethos, fedethos.client; from fedethos.cli import run\n"
        "assert all(module.__file__.startswith(sys.argv[1]) for module in (fedethos, fedethos.client))\n"
        "job = resources.files('fedethos.simulations.jobs') / 'adult.yaml'\n"
        "sys.exit(run(['--help']) or run(['config', 'check', str(job)]))"
    )
    site = str(tmp_path / "site")
    result = subprocess.run(
        [sys.executable, "-c", code, site],
        env={**os.environ, "PYTHONPATH": site},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "adult-income" in result.stdout


def test_the_version_stands_in_two_places_and_is_the_same():
    assert PROJECT["project"]["version"] == fedethos.__version__


def _imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


STOREYS = [{"core"}, {"privacy", "fairness"}, {"strategies"}, {"client", "server"}, {"governance"}, {"simulations"}, {"entry"}]


def _room(name: str) -> str:
    """``name``: of a module of ours. The command line and the ServerApp stand above the rooms and put them together."""
    part = name.split(".")[1] if "." in name else ""
    if part == "cli" or part.startswith("cli_") or part == "deployed_app":
        return "entry"
    return part if f"fedethos.{part}" in ROOMS else "core"


def test_imports_point_one_way():
    height = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
    wrong = []
    for place, path in _package_files(ROOT).items():
        if path.suffix == ".py":
            own = _room(place.removesuffix(".py").replace("/", "."))
            used = {_room(name) for name in _imported(path) if name.split(".")[0] == "fedethos"} - {own}
            wrong += [f"{place} imports {room}" for room in used if height[room] >= height[own]]
    assert wrong == []


def _declared(*lists: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for lines in lists for line in lines]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def test_the_libraries_that_are_imported_are_the_ones_that_are_declared():
    names = set().union(*(_imported(path) for path in _package_files(ROOT).values() if path.suffix == ".py"))
    imported = {name.split(".")[0] for name in names}
    owners = metadata.packages_distributions()
    foreign = imported - set(sys.stdlib_module_names) - {"fedethos", ""}
    needed = {canonicalize_name(owners.get(name, [name])[0]) for name in foreign}
    declared = set(_declared(PROJECT["project"]["dependencies"]))
    optional = set(_declared(EXTRAS["text-metrics"]))
    assert needed - declared - optional <= {"click", "pydantic-core"}  # typer and pydantic bring theirs
    assert optional <= needed
    assert declared - needed == {"fairlearn"}  # the metrics' reference, part of the fixed foundation


def test_every_library_that_is_declared_is_pinned_inside_its_range():
    pins = {
        canonicalize_name(name): version
        for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines())
        if not name.startswith("#")
    }
    declared = _declared(PROJECT["project"]["dependencies"], *EXTRAS.values())
    del declared["fedethos"]
    assert [name for name, requirement in declared.items() if pins.get(name) not in requirement.specifier] == []
