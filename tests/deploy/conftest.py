"""One stack for the whole tier: starting it costs more than a run on it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.deploy.stack import SEEDED, SITES, WOMEN, Stack, claim_only_stack, job_of, make_stack

from fedethos.runfolder import RunFolder


@pytest.fixture(scope="session")
def stack(worker_id: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Coordinator and three nodes, all running. A test that ends one of them starts it again."""
    if worker_id != "master":
        claim_only_stack(tmp_path_factory.getbasetemp().parent)  # which all workers of pytest-xdist share
    with tempfile.TemporaryDirectory(prefix="fd-") as folder:  # a short path: a socket's address has 107 bytes
        made = make_stack(Path(folder) / "t")
        try:
            made.start_coordinator()
            for site in SITES:
                made.start(site)
            made.until(lambda: sum(site["online"] for site in made.status()["sites"]) == len(SITES))
            yield made
        finally:
            made.close()


@pytest.fixture(scope="session")
def undisturbed(stack: Stack) -> RunFolder:
    """A seeded run of four rounds during which nothing happens."""
    return stack.run_to_end(job_of("calm", rounds=4, privacy=SEEDED) | {"scenarios": [WOMEN]})
