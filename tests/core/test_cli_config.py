"""``fedethos config`` and ``fedethos env``: what stands on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import json
import os
import platform
import shlex
from pathlib import Path

import pytest

from fedethos.cli import run
from fedethos.documents import load_job

ADULT = Path(__file__).parents[2] / "simulations" / "jobs" / "adult.yaml"


def test_check_says_what_the_job_resolves_to_and_what_to_do_next(capsys):
    assert run(["config", "check", str(ADULT), "--set", "privacy.epsilon=3"]) == 0
    out, err = capsys.readouterr()
    assert "epsilon 3, delta 1e-05 per site and record (add-remove)" in out
    assert load_job(ADULT, ["privacy.epsilon=3"]).sha256 in out
    assert shlex.split(out.splitlines()[-1]) == ["Next:", "fedethos", "simulate", str(ADULT), "--set", "privacy.epsilon=3"]
    assert err == ""


def test_check_says_when_a_job_does_not_protect(capsys):
    assert run(["config", "check", str(ADULT), "--set", "privacy.mode=none"]) == 0
    assert "none: sites send exact counts" in capsys.readouterr().out


def test_check_as_json_is_the_whole_job(capsys):
    assert run(["config", "check", str(ADULT), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    job = load_job(ADULT)
    assert (answer["ok"], answer["sha256"], answer["job"]) == (True, job.sha256, job.model_dump(mode="json", by_alias=True))


def test_check_of_a_bad_job_says_nothing_on_stdout(capsys):
    assert run(["config", "check", str(ADULT), "--set", "privacy.epsilom=3", "--json"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["CFG-201 Unknown key `privacy.epsilom`", "  where  --set no. 1", "  fix    Did you mean `epsilon`?"]


@pytest.mark.parametrize(("arguments", "expected"), [([], "training.batch_size"), (["privacy.epsilon"], "at most 50.0")])
def test_explain(capsys, arguments, expected):
    assert run(["config", "explain", *arguments]) == 0
    out = capsys.readouterr().out
    assert expected in out
    assert out.splitlines()[-1].startswith("Next: ")


def test_schema_is_pure_json_on_stdout(capsys):
    assert run(["config", "schema"]) == 0
    out, err = capsys.readouterr()
    assert "privacy" in json.loads(out)["properties"]
    assert err.startswith("Next: ")


def test_env_tells_versions_and_neither_host_nor_user_nor_paths(capsys, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "ward-7-host")
    assert run(["env", "--json"]) == 0
    out = capsys.readouterr().out
    facts = json.loads(out)
    assert facts["torch"].startswith("2.")
    assert facts["FLWR_TELEMETRY_ENABLED"] == "0"
    for private in ("ward-7-host", os.uname().nodename, str(Path.home()), str(Path.cwd())):
        assert private not in out


def test_models_list_as_json_names_what_can_be_fetched(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FEDETHOS_CACHE", str(tmp_path))
    assert run(["models", "list", "--json"]) == 0
    states = {state["name"]: state for state in json.loads(capsys.readouterr().out)}
    assert states["minilm"]["path"] is None
    assert run(["models", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Next: fedethos models fetch minilm"


@pytest.mark.parametrize(("verb", "argument"), [("fetch", "no-such-model"), ("add", "no-such-folder")])
def test_models_refuse_what_they_do_not_know(capsys, monkeypatch, tmp_path, verb, argument):
    monkeypatch.setenv("FEDETHOS_CACHE", str(tmp_path / "cache"))
    assert run(["models", verb, argument if verb == "fetch" else str(tmp_path / argument)]) == 2
    assert capsys.readouterr().err.startswith("MODEL-")
