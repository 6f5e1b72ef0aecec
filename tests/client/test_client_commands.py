"""What a site's operator types: init, doctor, review, approve, rotate-key, ledger. Words on stdout, hints on stderr, exit codes."""

import json
import stat
from pathlib import Path

import pytest
import yaml

from fedethos.cli import run
from fedethos.client.approvals import find_approval
from fedethos.client.egress import FILE as EGRESS
from fedethos.client.egress import Egress, Sent
from fedethos.client.node_key import load_node_key, public_line
from fedethos.client.spending import open_site_account, spending_plan
from fedethos.documents import load_job
from fedethos.privacy.ledger import Ledger
from fedethos.site import load_site

from .conftest import RUN


@pytest.fixture
def set_up(tmp_path: Path, capsys) -> Path:
    """A folder that ``init`` made."""
    folder = tmp_path / "ward"
    words = ["--name", "hospital-a", "--address", "fl.example.org:443", "--data", "records.csv", "--lifetime-epsilon", "6"]
    assert run(["client", "init", str(folder), *words]) == 0
    return folder


def test_init_writes_a_site_that_loads_and_keeps_its_secrets(set_up: Path, capsys) -> None:
    site = load_site(set_up / "site.yaml")
    assert (site.name, site.account, site.data.path) == ("hospital-a", "hospital-a", "records.csv")
    assert (site.caps.lifetime_epsilon, site.caps.per_job_epsilon) == (6.0, 6.0)
    assert site.coordinator is not None and not site.coordinator.insecure and not site.allow_unprotected
    for name in ("site.yaml", "node.key"):
        assert stat.S_IMODE((set_up / name).stat().st_mode) == 0o600
    out, err = capsys.readouterr()
    assert public_line(load_node_key(set_up / "node.key")) in out
    assert site.split_salt not in out + err and len(site.split_salt) == 32
    assert err.splitlines()[-1].endswith(f"fedethos client doctor {set_up / 'site.yaml'}")


def test_two_sites_do_not_share_a_salt(set_up: Path, tmp_path: Path) -> None:
    assert run(["client", "init", str(tmp_path / "b"), "--name", "b", "--address", "h:1", "--data", "d", "--lifetime-epsilon", "1"]) == 0
    assert load_site(set_up / "site.yaml").split_salt != load_site(tmp_path / "b" / "site.yaml").split_salt


def test_init_never_overwrites(set_up: Path, capsys) -> None:
    before = (set_up / "site.yaml").read_bytes(), (set_up / "node.key").read_bytes()
    assert run(["client", "init", str(set_up), "--name", "x", "--address", "h:1", "--data", "d", "--lifetime-epsilon", "1"]) == 2
    assert "CFG-405" in capsys.readouterr().err
    assert ((set_up / "site.yaml").read_bytes(), (set_up / "node.key").read_bytes()) == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--address", "fl.example.org:443", "--insecure"], "CFG-401"),
        (["--address", "fl.example.org"], "CFG-204"),
        (["--address", "h:1", "--hours", "8 pm"], "CFG-404"),
        (["--address", "h:1", "--name", "a/b"], "CFG-204"),
        (["--address", 'h:1", "x'], "CFG-204"),
    ],
)
def test_init_refuses_before_it_writes(tmp_path: Path, capsys, words: list[str], code: str) -> None:
    folder = tmp_path / "new"
    assert run(["client", "init", str(folder), "--name", "a", "--data", "d", "--lifetime-epsilon", "1", *words]) == 2
    assert code in capsys.readouterr().err
    assert not folder.exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    words = ["--name", "a", "--address", "h:1", "--data", "d", "--lifetime-epsilon", "1", "--dry-run"]
    assert run(["client", "init", str(tmp_path / "new"), *words]) == 0
    assert not (tmp_path / "new").exists()


def test_review_says_what_runs_leaves_and_costs(open_hospital, tmp_path: Path, capsys) -> None:
    hospital = open_hospital()
    page = tmp_path / "review.html"
    assert run(["client", "review", str(hospital.job_file), str(hospital.site_file), "--html", str(page)]) == 0
    out, _ = capsys.readouterr()
    assert hospital.job.sha256 in out and "epsilon 4.00" in out and "layers.0.weight 2×2" in out
    assert "No record leaves" in out and hospital.site.split_salt not in out
    text = page.read_text()
    assert hospital.job.sha256 in text and "layers.0.weight 2×2" in text and "<script" not in text
    assert hospital.site.split_salt not in text
    assert not (hospital.folder / "ledger.sqlite").exists() and not hospital.state.exists()  # a review changes nothing


def test_review_as_json_counts_bytes_and_times(open_hospital, capsys) -> None:
    hospital = open_hospital()
    assert run(["client", "review", str(hospital.job_file), str(hospital.site_file), "--json"]) == 0
    review = json.loads(capsys.readouterr().out)
    leaving = {row["what"]: row for row in review["leaving"]}
    assert leaving["train"]["times"] == 3 and leaving["train"]["basis"] == "charged"
    assert leaving["train"]["bytes"] >= 4 * (2 + 4)
    assert leaving["counts of test people, with noise"]["times"] == 1
    assert review["cost"]["whole_run"] == pytest.approx(4.0, rel=0.01)
    assert review["cost"]["refusal"] is None


def test_review_escapes_what_a_job_says(open_hospital, tmp_path: Path) -> None:
    hospital = open_hospital(job={"data": {"sensitive": {"sex": ["<script>alert(1)</script>", "Male"]}}})
    page = tmp_path / "review.html"
    assert run(["client", "review", str(hospital.job_file), str(hospital.site_file), "--html", str(page)]) == 0
    assert "<script>" not in page.read_text()


def test_approve_signs_and_can_be_taken_back(open_hospital, capsys) -> None:
    hospital = open_hospital()
    words = [str(hospital.job_file), str(hospital.site_file)]
    assert run(["client", "approve", *words, "--dry-run"]) == 0
    assert not hospital.state.exists()
    assert run(["client", "approve", *words, "--yes"]) == 0
    assert hospital.job.sha256 in capsys.readouterr().out
    assert dict(hospital.approval().tensors) == hospital.tensors
    assert run(["client", "leave", "--site", str(hospital.site_file)]) == 0
    assert run(["client", "leave", "--site", str(hospital.site_file)]) == 7


def test_without_an_answer_nothing_is_approved(open_hospital, monkeypatch) -> None:
    hospital = open_hospital()
    monkeypatch.setattr("typer.confirm", lambda *_, **__: (_ for _ in ()).throw(__import__("click").Abort()))
    assert run(["client", "approve", str(hospital.job_file), str(hospital.site_file)]) == 130
    assert not hospital.state.exists()


def test_a_job_beyond_the_budget_cannot_be_approved(open_hospital, capsys) -> None:
    hospital = open_hospital(site={"caps": {"lifetime_epsilon": 3.0, "per_job_epsilon": 3.0}})
    assert run(["client", "approve", str(hospital.job_file), str(hospital.site_file), "--yes"]) == 4
    out, err = capsys.readouterr()
    assert "PRIV-310" in out and "PRIV-361" in err
    assert not hospital.state.exists()


def test_a_job_without_privacy_cannot_be_approved_by_accident(open_hospital, capsys) -> None:
    bare = {"privacy": {"mode": "none", "epsilon": None}}
    hospital = open_hospital(job=bare)
    assert run(["client", "approve", str(hospital.job_file), str(hospital.site_file), "--yes"]) == 4
    out, err = capsys.readouterr()
    assert "NO differential privacy" in out and "PRIV-360" in err
    hospital = open_hospital(job=bare, site={"allow_unprotected": True})
    assert run(["client", "approve", str(hospital.job_file), str(hospital.site_file), "--yes"]) == 0


@pytest.mark.parametrize(
    ("sites", "code"), [({"hospital-b": {"declared_size": 300}}, "SEC-615"), ({"hospital-a": {}, "hospital-b": {}}, "CFG-231")]
)
def test_a_job_that_does_not_know_this_site_cannot_be_approved(open_hospital, capsys, sites: dict[str, object], code: str) -> None:
    hospital = open_hospital()
    content = yaml.safe_load(hospital.job_file.read_text())
    content["federation"]["sites"] = sites
    hospital.job_file.write_text(yaml.safe_dump(content))
    assert run(["client", "approve", str(hospital.job_file), str(hospital.site_file), "--yes"]) != 0
    assert code in capsys.readouterr().err


def test_a_new_key_takes_over_and_approvals_hold(hospital, capsys) -> None:
    site = str(hospital.site_file)
    old = public_line(load_node_key(hospital.key))
    assert run(["client", "rotate-key", site, "--activate"]) == 7
    assert run(["client", "rotate-key", site]) == 0
    prepared = capsys.readouterr().out
    assert public_line(load_node_key(hospital.key)) == old  # until the coordinator has the new one
    assert run(["client", "rotate-key", site]) == 0
    assert capsys.readouterr().out == prepared  # the same one again
    assert run(["client", "rotate-key", site, "--activate"]) == 0
    assert public_line(load_node_key(hospital.key)) in prepared
    assert public_line(load_node_key(hospital.folder / "node.key.old")) == old
    assert find_approval(hospital.state, hospital.job.sha256, hospital.key, hospital.site).job == hospital.job


def sent(round: int, epsilon: float | None) -> Sent:
    return Sent(
        run=RUN, round=round, message_type="train", shapes={"w": (2,)}, bytes=300, sha256="0" * 64, epsilon_after=epsilon, refused=None
    )


def test_ledger_prints_what_left_and_what_was_spent(hospital, capsys) -> None:
    job = load_job(hospital.job_file)
    with Egress(hospital.state / EGRESS) as egress, Ledger(hospital.folder / "ledger.sqlite") as ledger:
        open_site_account(ledger, job, hospital.site)
        plan = ledger.commit(spending_plan(job, hospital.site, RUN))
        receipt = plan.reserve("train", 1)
        plan.record(receipt.release(b"", event=receipt.event), b"reply")
        egress.append(sent(1, plan.spent()))
    assert run(["client", "ledger", str(hospital.site_file)]) == 0
    out = capsys.readouterr().out
    assert RUN in out and "round 1" in out and "epsilon 4.00 of 8" in out
    assert run(["client", "ledger", str(hospital.site_file), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["head"]["count"] == 1 and body["sent"][0]["sent"]["round"] == 1
    assert run(["client", "doctor", str(hospital.site_file), "--offline"]) == 0


def test_a_ledger_from_an_old_copy_is_noticed(hospital, capsys) -> None:
    """It is whole in itself, but has forgotten what left since."""
    with Egress(hospital.state / EGRESS) as egress:
        egress.append(sent(1, 1.5))
    assert run(["client", "ledger", str(hospital.site_file)]) == 4
    assert "PRIV-362" in capsys.readouterr().err
    assert run(["client", "doctor", str(hospital.site_file), "--offline"]) == 4
