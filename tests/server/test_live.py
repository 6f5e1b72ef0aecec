"""What the coordinator is shown of a run: refusals, who is quarantined and why, and the last word even on a full disk."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedethos.records import Round
from fedethos.server.live import LiveFile, Problem, read_live
from fedethos.server_view import fitting, print_status
from fedethos.storage import JsonValue, canonical_line


def round_of(number: int, *, refused: str = "", quarantined: bool = False) -> dict[str, JsonValue]:
    metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "f1", "roc_auc", "worst_group_accuracy"))
    return {
        "round": number,
        "seconds": 1.0,
        "sites": {"north": "sent", "west": "refused"},
        "metrics": metrics,
        "fairness": {},
        "basis": "released",
        "epsilon": None,
        "bytes_up": 1,
        "bytes_down": 1,
        "aggregation_error": None,
        "refusals": [{"site": "west", "code": refused, "incident": "ab"}] if refused else [],
        "quarantined": [{"site": "west", "code": "AGG-703"}] if quarantined else [],
    }


def shown(runs: list[JsonValue], *, disk_full: bool = False) -> str:
    out = io.StringIO()
    sites: list[JsonValue] = [{"name": "north", "online": True}, {"name": "west", "online": True}]
    answer: dict[str, JsonValue] = {"version": "1", "address": "x:1", "disk_full": disk_full, "sites": sites, "runs": runs}
    print_status(answer, Console(file=out, width=200))
    return out.getvalue()


def run_of(**changes: JsonValue) -> dict[str, JsonValue]:
    calm: dict[str, JsonValue] = {
        "run": "adult-01234567",
        "status": "running",
        "round": 3,
        "rounds": 4,
        "stage": "Training",
        "seconds_left": 60.0,
        "sites": {"north": "training"},
        "min_sites": 1,
        "refusals": [],
        "quarantined": {},
        "starts": 1,
        "folder": "runs/adult-01234567",
        "problem": None,
    }
    return {**calm, **changes}


def test_refusals_and_quarantine_are_kept_also_over_a_restart(tmp_path: Path) -> None:
    records = [round_of(1, refused="AGG-702"), round_of(2, refused="AGG-703", quarantined=True), round_of(3, quarantined=True)]
    live = LiveFile(tmp_path / "live.json", rounds=4, deadline=9.0)
    for record in records:
        live.round_finished(record)
    seen = read_live(tmp_path / "live.json")
    assert seen is not None and seen.quarantined == {"west": "AGG-703"}
    assert [(one.round, one.site, one.code, one.incident) for one in seen.refusals] == [
        (1, "west", "AGG-702", "ab"),
        (2, "west", "AGG-703", "ab"),
    ]
    again = LiveFile(tmp_path / "again.json", rounds=4, deadline=9.0)
    again.remember([Round.model_validate_json(canonical_line(record)) for record in records])
    restarted = read_live(tmp_path / "again.json")
    assert restarted is not None and (restarted.refusals, restarted.quarantined) == (seen.refusals, seen.quarantined)


def test_the_page_says_who_is_quarantined_and_why() -> None:
    page = shown([run_of(quarantined={"west": "AGG-703"})])
    assert "west is quarantined" in page and "AGG-703" in page
    assert "quarantined" not in shown([run_of()])


@pytest.mark.parametrize("height", [60, 16, 10])
def test_what_goes_on_stays_in_sight_on_a_low_terminal(height: int) -> None:
    """Twenty sites and eight runs, of which one goes on."""
    sites: list[JsonValue] = [{"name": f"s{number}", "online": number != 3} for number in range(20)]
    runs: list[JsonValue] = [*(run_of(run=f"old-{number}", status="completed", sites={}) for number in range(7)), run_of()]
    answer: dict[str, JsonValue] = {"version": "1", "address": "x:1", "disk_full": True, "sites": sites, "runs": runs}
    out = io.StringIO()
    console = Console(file=out, width=100, height=height, force_terminal=False)
    console.print(fitting(answer, console))
    page = out.getvalue()
    assert page.count("\n") < height
    assert "adult-01234567  running" in page and "disk of the state folder is full" in page
    assert ("old-6" in page, "old-2" in page) == (height >= 16, height == 60)
    assert ("offline  s3" in page) is (height < 60)


def test_the_page_says_why_a_run_does_not_go_on() -> None:
    problem: dict[str, JsonValue] = {
        "code": "AGG-710",
        "what": "Only 0 came.",
        "where": "",
        "why": "Refused: west with SEC-611.",
        "fix": "Approve.",
    }
    assert "AGG-710 Only 0 came. Refused: west with SEC-611. Approve." in shown([run_of(status="queued", problem=problem)])


def test_the_page_names_sites_in_their_order_and_a_full_disk() -> None:
    sites: dict[str, JsonValue] = {"site-10": "sent", "site-2": "training"}
    assert "site-2 training, site-10 sent" in shown([run_of(sites=sites)])
    assert "disk of the state folder is full" in shown([], disk_full=True) and "disk" not in shown([])


@pytest.mark.parametrize("refusals", [0, 50])
def test_the_last_word_is_written_over_the_one_before_where_the_disk_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    path = tmp_path / "live.json"
    live = LiveFile(path, rounds=4, deadline=9.0)
    for number in range(refusals):
        live.round_finished(round_of(number, refused="AGG-703"))
    size = path.stat().st_size

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedethos.storage.write_synced", full)
    live.end(Problem(code="RUN-904", what="The disk is full."))
    monkeypatch.undo()
    seen = read_live(path)
    assert seen is not None and seen.ended and seen.problem is not None and seen.problem.code == "RUN-904"
    assert path.stat().st_size <= size and list(tmp_path.iterdir()) == [path]
