"""A disk that is really full (a tmpfs of a few megabytes): no half checkpoint, a clear refusal, and the run goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

SMALL_DISK = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=3m tmpfs "$0" && exec "$@"']
JOB = {
    "schema": "fedethos/job/v1",
    "name": "small",
    "task": "tabular-classification",
    "model": {"path": "builtin:linear"},
    "data": {
        "path": "builtin:adult",
        "na_values": ["?"],
        "limit": 0.05,
        "features": {"age": {"low": 17, "high": 90}, "education_num": {"low": 1, "high": 16}},
        "label": {"column": "income", "values": ["<=50K", ">50K"], "favorable": ">50K"},
        "sensitive": {"sex": ["Female", "Male"]},
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    },
    "training": {"local_steps": 2, "batch_size": 64, "learning_rate": 0.1},
    "privacy": {"mode": "none"},
    "federation": {"rounds": 4, "min_sites": 2},
    "simulation": {"sites": 2, "seed": 3},
}


def test_a_run_on_a_full_disk_keeps_its_checkpoints_says_so_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    disk, job = tmp_path / "disk", tmp_path / "job.yaml"
    disk.mkdir()
    job.write_text(yaml.safe_dump(JOB))
    if shutil.which("unshare") is None or subprocess.run([*SMALL_DISK, disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a disk of its own (unshare --map-root-user --mount)")
    program = [sys.executable, str(Path(__file__).with_name("on_a_full_disk.py")), str(disk), str(job)]
    ran = subprocess.run([*SMALL_DISK, disk, *program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    expected = {
        "code": "RUN-904",
        "where": "round-0003",
        "checkpoints": ["round-0000", "round-0001", "round-0002"],
        "newest": 2,
        "live": "RUN-904",  # what the coordinator reads
        "rounds": [0, 1, 2, 3, 4],
        "same": True,
    }
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [expected] * 2
