"""docs/threat-model.md names a test for every control, and each of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/threat-model.md").read_text("utf-8")
NAMED = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)


def test_every_test_that_is_named_exists() -> None:
    files = {path.name: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    missing = [f"{file}::{name}" for file, name in NAMED if f"def {name}(" not in files.get(file, "")]
    assert missing == []


def test_every_control_has_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| Attack |", "| Accident |"))]
    assert len(rows) > 40
    assert [row for row in rows if "::test_" not in row] == []
