"""``fedethos audit-data`` from documents to terminal, JSON and page."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from typer.testing import CliRunner

from fedethos.cli_audit_data import audit_data
from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.simulations.virtual_sites import site_records

JobWriter = Callable[..., Path]

app = typer.Typer()
app.command()(audit_data)


def run(*arguments: str | Path) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.stdout, result.exception


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    """Two visits of 200 people each, in a file of a site's own."""
    rows = [
        {"who": f"patient-{person}", "sex": "FM"[person % 2], "ward": "north" if person % 2 == visit else "south", "stay": str(person % 7),
         "income": "<=50K" if person % 3 else ">50K"}
        for person in range(200)
        for visit in range(2)
    ]  # fmt: skip
    path = tmp_path / "site" / "visits.csv"
    path.parent.mkdir()
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture
def job(write_job: JobWriter, visits: Path) -> Path:
    data = {
        "path": "nowhere.csv",
        "text": "{ward}, {stay} days",
        "person_id": "who",
        "sensitive": {"sex": ["F", "M"]},
        "map": {"sex": {"F": "F", "M": "M"}},
    }
    return write_job(data=data)


@pytest.fixture
def site(visits: Path) -> Path:
    path = visits.parent / "site.yaml"
    path.write_text(yaml.safe_dump({
        "schema": "fedethos/site/v1", "account": "ward-7", "data": {"path": "visits.csv"}, "split_salt": "0123456789abcdef",
        "caps": {"lifetime_epsilon": 10.0, "per_job_epsilon": 8.0},
    }))  # fmt: skip
    return path


def test_the_splits_are_those_that_training_draws(write_job: JobWriter) -> None:
    path = write_job()
    body, error = run(path, "--json")
    assert error is None
    audit = json.loads(body)["audit"]
    loaded = load_job(path)
    parts = site_records(loaded, path.parent).values()
    assert audit["rows_by_split"] == [sum(len(part[split]) for part in parts) for split in ("train", "validation", "test")]
    assert audit["rows"] == 900 and json.loads(body)["basis"] == "node-only"
    assert run(path, "--json")[0] == body  # samples and folds follow the seed


def test_only_the_people_that_the_job_takes_are_audited(write_job: JobWriter) -> None:
    audit = json.loads(run(write_job(data={"limit": 0.5}), "--json")[0])["audit"]
    assert 400 < audit["rows"] < 500


def test_a_site_audits_its_own_file_by_people_and_rows(job: Path, site: Path, tmp_path: Path) -> None:
    page = tmp_path / "audit.html"
    text, error = run(job, "--site", site, "--out", page)
    assert error is None, text
    assert "200 people and 400 rows" in text and "must not leave the site" in text
    html = page.read_text("utf-8")
    assert "must not leave the site" in html and "account ward-7" in html
    assert "patient-" not in html + text
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    seen = Tags(html).tags
    assert not {"script", "link", "img", "iframe", "a", "form"} & set(seen)
    assert seen.count("figure") == seen.count("details") == 2  # each picture has its table


def test_another_file_can_be_named(job: Path, visits: Path) -> None:
    audit = json.loads(run(job, "--data", visits, "--json")[0])["audit"]
    assert (audit["people"], audit["rows"], audit["most_rows_of_a_person"]) == (200, 400, 2)


def test_strict_refuses_copies_across_splits_after_showing_them(job: Path, site: Path, visits: Path) -> None:
    frame = pd.read_csv(visits)
    copies = frame.assign(who=[f"again-{row}" for row in range(len(frame))], note=range(len(frame)))
    pd.concat([frame.assign(note=range(len(frame))), copies]).to_csv(visits, index=False)
    assert run(job, "--site", site)[1] is None
    text, error = run(job, "--site", site, "--strict")
    assert "!! duplicates:" in text
    assert isinstance(error, FedethosError)
    assert (error.code, error.exit_code) == ("DATA-160", 3)
    frame.assign(note=range(len(frame))).to_csv(visits, index=False)
    assert run(job, "--site", site, "--strict")[1] is None


def test_a_reference_population(job: Path, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "reference.yaml"
    path.write_text(yaml.safe_dump({"source": "census", "shares": {"sex": {"F": 0.9, "M": 0.1}}}))
    page = tmp_path / "audit.html"
    text, error = run(job, "--site", site, "--reference", path, "--out", page)
    assert error is None
    assert "F is under-represented: 0.56 (" in text and "Reference population: census." in page.read_text("utf-8")


@pytest.mark.parametrize(
    ("shares", "code"),
    [({"sex": {"F": 0.6, "M": 0.6}}, "CFG-320"), ({"sex": {"F": 1.0}}, "CFG-321"), ({"age": {"old": 0.5, "new": 0.5}}, "CFG-321")],
)
def test_a_reference_that_does_not_fit_is_refused(job: Path, site: Path, tmp_path: Path, shares: object, code: str) -> None:
    path = tmp_path / "reference.yaml"
    path.write_text(yaml.safe_dump({"source": "census", "shares": shares}))
    error = run(job, "--site", site, "--reference", path)[1]
    assert isinstance(error, FedethosError)
    assert (error.code, error.exit_code) == (code, 2)


def test_names_from_documents_cannot_break_the_page(job: Path, site: Path, visits: Path, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>{{ 7*7 }}&$x$"
    frame = pd.read_csv(visits)
    frame["sex"] = frame["sex"].where(frame["sex"] == "F", hostile)
    frame.to_csv(visits, index=False)
    document = yaml.safe_load(job.read_text())
    document["data"] |= {"sensitive": {"sex": ["F", hostile]}, "map": {}}
    job.write_text(yaml.safe_dump(document))
    page = tmp_path / "audit.html"
    _, error = run(job, "--site", site, "--out", page)
    assert error is None
    assert "script" not in Tags(page.read_text("utf-8")).tags


def test_a_language_model_learns_answers_so_they_are_audited_too(tmp_path: Path) -> None:
    """Identifiers stand in the responses alone, and rows with equal prompts are no copies where the answers differ."""
    note = "came by train and went home again"
    rows = [{"note": note, "letter": f"Write to anna{row}@example.org", "sex": "fm"[row % 2]} for row in range(60)]
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({
        "schema": "fedethos/job/v1",
        "name": "letters",
        "task": "causal-lm",
        "model": {"path": "none"},
        "data": {"path": "letters.jsonl", "text": {"column": "note"}, "response": {"column": "letter"}, "sensitive": {"sex": ["f", "m"]},
                 "split": {"train": 0.6, "validation": 0.2, "test": 0.2}},
        "simulation": {"sites": 1},
        "fairness": {"thresholds": "fixed"},
    }))  # fmt: skip
    body, error = run(tmp_path / "job.yaml", "--json")
    assert error is None
    audit = json.loads(body)["audit"]
    assert [kind["rows"] for kind in audit["identifiers"] if "mail" in kind["kind"]] == [60]
    assert audit["duplicates"]["inputs"]["across"] == 0
