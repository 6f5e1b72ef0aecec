"""``fedethos env``: what a bug report needs, without host name, user name or paths."""

from __future__ import annotations

from typing import Annotated

import typer


def env(as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False) -> None:
    """Print versions, platform and threads for a bug report. No host name, no paths."""
    import json

    facts = _facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<48}  {value}")
    typer.echo("Next: paste this into your report.")


def _facts() -> dict[str, str]:
    import os
    import platform

    import fedethos

    facts = {
        "fedethos": fedethos.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    facts |= {name: os.environ.get(name, "not set") for name in ("OMP_NUM_THREADS", *fedethos.QUIET)}
    return facts | _versions()


def _versions() -> dict[str, str]:
    """Installed versions of the libraries that the installed package names, without importing them."""
    import re
    from importlib import metadata

    names = {re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in metadata.requires("fedethos") or () if "extra ==" not in line}
    found: dict[str, str] = {}
    for name in sorted(names, key=str.lower):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found
