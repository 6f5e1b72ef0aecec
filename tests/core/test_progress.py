import io
import subprocess
import sys

import pytest
from rich.console import Console

from fedethos.progress import Observer, Progress, Silent
from fedethos.wording import duration, epsilon, natural, size

SITES = ["site-1", "site-2", "[red]site-3[/red]"]


def record(number: int, *, private: bool = True, auc: float | None = 0.5) -> dict:
    return {
        "round": number,
        "seconds": 10.0,
        "sites": {} if number == 0 else {SITES[0]: "sent", SITES[1]: "late", SITES[2]: "refused"},
        "metrics": {"accuracy": None, "balanced_accuracy": None, "f1": None, "roc_auc": auc, "worst_group_accuracy": 0.25},
        "fairness": {},
        "basis": "oracle",
        "epsilon": {SITES[0]: 1.001, SITES[1]: 2.5, SITES[2]: None} if private and number else None,
        "bytes_up": 1_500_000,
        "bytes_down": 2_500_000,
        "aggregation_error": 0.0,
        "refusals": [{"site": SITES[2], "code": "AGG-702"}] if number else [],
    }


def play(observer: Observer, rounds: int = 3, **kind: object) -> None:
    observer.stage("Preparing site 2 of 3")
    for number in range(rounds + 1):
        observer.round_started(number, rounds, SITES if number else [])
        for name in SITES if number else []:
            observer.site(name, "sent")
        observer.round_finished(record(number, **kind))


def shown(*, terminal: bool, sites: list[str] | None = None, **kind: object) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, color_system=None, width=100)
    with Progress(console) as progress:
        if sites is not None:
            progress.round_started(1, 3, sites)
        else:
            play(progress, **kind)
    return out.getvalue()


def test_a_pipe_gets_one_plain_line_per_round():
    lines = shown(terminal=False).splitlines()
    assert lines == [
        "Preparing site 2 of 3",
        "before training: worst group 0.250, AUC 0.500; 1.5 MB up, 2.5 MB down",
        *(
            f"round {number} of 3: 1 sent, 1 late, 1 refused; [red]site-3[/red] refused with AGG-702; "
            f"worst group 0.250, AUC 0.500, epsilon 2.50; 1.5 MB up, 2.5 MB down; {left}"
            for number, left in ((1, "about 20 s left"), (2, "about 10 s left"), (3, "last round"))
        ),
    ]


def test_a_pipe_gets_no_escape_sequences():
    assert "\x1b" not in shown(terminal=False)


@pytest.mark.parametrize(
    "text", ["Round 3 of 3", "site-1", "sent", "late", "refused", "[red]site-3[/red]", "epsilon 1.01", "0.250", "6.0 MB", "done"]
)
def test_the_live_view_ends_with_the_last_round(text):
    last_frame = shown(terminal=True).rpartition("Round 3 of 3")
    assert text in last_frame[1] + last_frame[2]


def test_a_number_that_was_not_released_is_not_invented():
    assert "AUC not released" in shown(terminal=False, auc=None)
    assert "epsilon" not in shown(terminal=False, private=False)
    assert "no privacy protection" in shown(terminal=True, private=False)


def test_many_sites_are_counted_instead_of_listed():
    out = shown(terminal=True, sites=[f"site-{number}" for number in range(500)])
    assert "500 sites: 500 training" in out
    assert "site-17" not in out


def test_silent_accepts_everything_and_says_nothing(capsys):
    play(Silent())
    assert capsys.readouterr() == ("", "")


def test_importing_the_view_does_not_import_torch():
    code = "import sys, fedethos.progress, fedethos.runfolder, fedethos.console; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_cost_is_never_shown_smaller_than_it_is():
    assert [epsilon(value) for value in (7.9901, 7.99, 8.0, 0.001, None)] == ["8.00", "7.99", "8.00", "0.01", "none"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_400_000, "12.4 MB"), (3 * 10**15, "3000.0 TB")]
)
def test_sizes(count, text):
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_site_2_comes_before_site_10():
    assert sorted(["site-10", "site-2", "b", "10", ""], key=natural) == ["", "10", "b", "site-2", "site-10"]
