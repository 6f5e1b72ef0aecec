"""Write ``requirements.txt`` for a folder of wheels: every one with its version and SHA-256, for ``pip install --require-hashes``.

python scripts/wheelhouse.py build/wheelhouse
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from packaging.utils import parse_wheel_filename

HEADER = """\
# On a machine without a network:
#   python3 -m venv /opt/fedethos
#   /opt/fedethos/bin/pip install --no-index --find-links . --require-hashes -r requirements.txt
"""


def requirements(folder: Path) -> str:
    """One line for each wheel in ``folder``, sorted by name. ValueError when two wheels are of one package."""
    lines: dict[str, str] = {}
    for wheel in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        if name in lines:
            raise ValueError(f"two wheels of {name}")
        with wheel.open("rb") as file:
            lines[name] = f"{name}=={version} --hash=sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}\n"
    return HEADER + "".join(lines[name] for name in sorted(lines))


if __name__ == "__main__":
    house = Path(sys.argv[1])
    (house / "requirements.txt").write_text(requirements(house), "utf-8")
    print(f"{len(list(house.glob('*.whl')))} wheels in {house}. Copy the folder; requirements.txt says how to install.")
