"""``fedethos client ask``: a site asks a released adapter by itself, and gets what the coordinator gets."""

import json
from pathlib import Path

import pytest
import yaml

from fedethos.cli import run as fedethos
from fedethos.simulations.export import export_run

SITE = {
    "schema": "fedethos/site/v1",
    "account": "ward",
    "data": {"path": "nowhere.jsonl"},
    "caps": {"lifetime_epsilon": 8.0, "per_job_epsilon": 8.0},
    "split_salt": "sixteen characters or more",
}


@pytest.fixture
def site(answering: Path, tmp_path: Path) -> Path:
    """A site without records, with the adapter of ``answering`` and a scenario of its own secrets."""
    export_run(answering, tmp_path / "adapter", merged=False)
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(SITE))
    secrets = {
        "schema": "fedethos/scenario/v1",
        "name": "own-secrets",
        "prompts": [f"The key of ward {number} is" for number in range(10)],
        "responses": [f"{4711 + number}-{number}7" for number in range(10)],
        "metric": "exposure",
        "limit": 8.0,
    }
    (tmp_path / "secrets.yaml").write_text(yaml.safe_dump(secrets))
    return tmp_path


def test_a_site_gets_the_coordinators_numbers_and_writes_nothing(answering: Path, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(site.rglob("*"))
    suite = ["--suite", f"scenario={site / 'secrets.yaml'}", "--json"]
    assert fedethos(["client", "ask", str(answering / "job.yaml"), str(site / "adapter"), str(site / "site.yaml"), *suite]) == 0
    own = json.loads(capsys.readouterr().out)["scenario-own-secrets"]
    assert own["limit"]["holds"] is True and own["basis"] == "own-file"
    assert sorted(site.rglob("*")) == before
    assert fedethos(["evaluate", str(answering), *suite]) == 0
    assert json.loads(capsys.readouterr().out)["suites"]["scenario-own-secrets"] == own
    assert fedethos(["client", "ask", str(answering / "job.yaml"), str(site / "adapter"), str(site / "site.yaml"), *suite[:2]]) == 0
    assert "Nothing was written or sent." in capsys.readouterr().out


def test_what_cannot_be_asked_is_refused(answering: Path, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, suite = str(answering / "job.yaml"), ["--suite", f"scenario={site / 'secrets.yaml'}"]
    assert fedethos(["client", "ask", job, str(site / "nowhere"), str(site / "site.yaml"), *suite]) == 2
    assert "RUN-960" in capsys.readouterr().err
    assert fedethos(["client", "ask", job, str(site / "adapter"), str(site / "site.yaml")]) == 2
