"""Make the README's pictures and table from a finished demo run: ``python scripts/make_pictures.py runs/demo``.

Needs a Chromium on the path. Writes docs/images/report.png and docs/images/terminal.png, and the table between the marks in README.md.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from fedethos.console import print_summary
from fedethos.runfolder import RunFolder
from fedethos.wording import interval

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--hide-scrollbars")  # fmt: skip
ROWS = (
    ("AUC", "roc_auc"),
    ("Balanced accuracy", "balanced_accuracy"),
    ("Accuracy", "accuracy"),
)
GAPS = (
    ("Demographic-parity difference by sex", "demographic_parity_difference"),
    ("Equalized-odds difference by sex", "equalized_odds_difference"),
)


def main(run: Path) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    picture((run / "report.html").resolve(), IMAGES / "report.png", width=1100, height=900)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "terminal.svg"
        console = Console(record=True, width=100, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115, PTH123
        print_summary(RunFolder(run), console)
        page.write_text(console.export_svg(title="make demo"), encoding="utf-8")
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', page.read_text("utf-8")).groups())
        picture(page, IMAGES / "terminal.png", width=round(width), height=round(height))
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8")
    readme.write_text(
        re.sub(r"(\|---\|---\|\n)(?:\|.*\|\n|@@TABLE@@\n)+(\nCentralised)", rf"\g<1>{table(run)}\g<2>", text), encoding="utf-8"
    )


def table(run: Path) -> str:
    result = RunFolder(run).read_result()
    lines = [f"| {label} | {interval(result.metrics.of(name))} |" for label, name in ROWS]
    lines += [f"| {label} | {interval(result.fairness['sex'].of(name))} |" for label, name in GAPS]
    epsilon = max(site.epsilon or 0.0 for site in result.privacy.sites.values())
    lines.append(f"| Epsilon per site, one record added or removed, delta 1e-5 | {epsilon:.2f} |")
    lines.append(f"| Sent by all sites | {result.communication.bytes_up / 1e6:.1f} MB |")
    return "\n".join(lines) + "\n"


def picture(page: Path, image: Path, *, width: int, height: int) -> None:
    chromium = shutil.which("chromium") or sys.exit("no chromium on the path")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            chromium,
            *QUIET,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--screenshot={image}",
            page.as_uri(),
        ]
        subprocess.run(command, check=True, capture_output=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
