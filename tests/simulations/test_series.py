"""Jobs that share their prepared sites end as if each had run alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedethos.documents import load_job
from fedethos.progress import Silent
from fedethos.simulations.engine import simulate
from fedethos.simulations.series import simulate_series

STEERED = {"strategy": "controller", "every": 1, "learning_rate": 10.0}


def test_each_run_is_that_of_the_job_alone(write_job, tmp_path: Path) -> None:
    """Both are private; the second pays for counts too, and starts where the first one started."""
    jobs = {tmp_path / "plain": load_job(write_job()), tmp_path / "steered": load_job(write_job(fairness=STEERED))}
    simulate_series(jobs, base=tmp_path, observer=Silent())
    for folder, job in jobs.items():
        alone = tmp_path / f"{folder.name}-alone"
        simulate(job, alone, base=tmp_path, observer=Silent())
        ours, theirs = (json.loads((place / "result.json").read_text()) for place in (folder, alone))
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
        adapters = [load_file(place / "adapter" / "adapter_model.safetensors") for place in (folder, alone)]
        for name, value in adapters[1].items():
            np.testing.assert_array_equal(adapters[0][name], value, err_msg=name)
        assert (folder / "privacy.json").read_bytes() == (alone / "privacy.json").read_bytes()
    moved = json.loads((tmp_path / "steered" / "rounds.jsonl").read_text().splitlines()[-1])["weights"]
    assert moved["Female"][">50K"] != 1.0


def test_what_is_finished_is_not_run_again(write_job, tmp_path: Path) -> None:
    jobs = {tmp_path / "plain": load_job(write_job(federation={"rounds": 1}))}
    simulate_series(jobs, base=tmp_path, observer=Silent())
    first = (tmp_path / "plain" / "result.json").read_bytes()
    simulate_series(jobs, base=tmp_path / "no-records-here", observer=Silent())
    assert (tmp_path / "plain" / "result.json").read_bytes() == first


@pytest.mark.parametrize(
    "other", [{"simulation": {"seed": 4}}, {"training": {"batch_size": 16}}, {"federation": {"aggregation": "fedavg"}}]
)
def test_jobs_on_other_people_or_models_are_refused(write_job, tmp_path: Path, other: dict[str, dict[str, object]]) -> None:
    jobs = {tmp_path / "one": load_job(write_job()), tmp_path / "other": load_job(write_job(**other))}
    with pytest.raises(ValueError, match="differ only"):
        simulate_series(jobs, base=tmp_path, observer=Silent())
    assert not (tmp_path / "one").exists()
