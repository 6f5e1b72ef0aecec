"""``make bench``: print measured ratios and write them to ``build/bench.json``.

Every figure compares two things measured side by side in one run, so that it means the same on another machine. A part runs
in a process of its own, so that one part's memory and threads do not disturb the next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

from fedethos.simulations.benchmarks.row import Row, line

_HERE = "fedethos.simulations.benchmarks"
PARTS = {
    "main": ("main_job",),
    "privacy": ("privacy_step", "private_parts"),
    "fairness": ("fairness", "compas"),
    "small-data": ("small_data",),
    "deployment": ("deployment",),
    "lm": ("language",),
}
OUTPUT = Path("build/bench.json")


def main() -> int:
    """Exit code 1 when a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m fedethos.simulations.bench", description=__doc__)
    parser.add_argument("--only", choices=sorted(PARTS), help="one part")
    parser.add_argument("--part", choices=sorted(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        with redirect_stdout(sys.stderr):  # what a benchmark says on the way is not its result
            rows = [row for module in PARTS[arguments.part] for row in import_module(f"{_HERE}.{module}").rows()]
        print(json.dumps(rows))
        return 0
    found = [row for part in ([arguments.only] if arguments.only else PARTS) for row in _measured(part)]
    for row in found:
        print(line(row))
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"Written to {OUTPUT}")
    return 0 if all(row["holds"] is not False for row in found) else 1


def _measured(part: str) -> list[Row]:
    print(f"measuring {part} …", file=sys.stderr)
    command = [sys.executable, "-W", "ignore", "-m", "fedethos.simulations.bench", "--part", part]
    answer: list[Row] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return answer


if __name__ == "__main__":
    sys.exit(main())
