"""docs/errors.md lists the codes that the code can raise, all of them and no others."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("src/fedethos", "privacy", "fairness", "strategies", "client", "server", "governance", "simulations")
CODE = r"(?:CFG|DATA|MODEL|PRIV|SEC|NET|AGG|NODE|RUN)-\d{3}"


def raised() -> set[str]:
    sources = (path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
    return {code for path in sources for code in re.findall(rf'"({CODE})"', path.read_text("utf-8"))}


def test_every_code_is_documented_and_nothing_else_is() -> None:
    documented = re.findall(rf"^\| ({CODE}) \| .+\. ?(?:\|| .*\|)$", (ROOT / "docs/errors.md").read_text("utf-8"), re.MULTILINE)
    assert len(documented) == len(set(documented))
    assert set(documented) == raised()
