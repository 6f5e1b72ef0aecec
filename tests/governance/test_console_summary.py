import io

import pytest
from rich.console import Console

from fedethos.console import print_summary
from fedethos.errors import FedethosError
from fedethos.governance.report import render_report


def summary(run, **look: object) -> str:
    out = io.StringIO()
    print_summary(run, Console(file=out, width=100, **look))
    return out.getvalue()


def test_the_final_table(make_run):
    lines = [" ".join(line.split()) for line in summary(make_run()).splitlines()]
    for line in (
        "adult-income: completed after 6 rounds in 1 min 58 s",
        "! Simulation, not a guarantee",
        "Accuracy 0.826 (0.812 to 0.839) +0.240",
        "Balanced accuracy 0.776 (0.758 to 0.793) +0.240",
        "AUC 0.871 (0.857 to 0.884) +0.240",
        "By sex: demographic-parity difference 0.187 (0.158 to 0.216)",
        "By sex: equalized-odds difference 0.083 (0.052 to 0.131)",
        "By race: demographic-parity difference not measurable (0.061 to 0.302)",
        "Site epsilon (per record and site, add-remove, delta 1e-05) private steps",
        "site-1 7.98 120",
        "Sent by the sites: 19.7 MB; sent to them: 23.0 MB.",
    ):
        assert line in lines
    assert lines.index("By sex: demographic-parity difference 0.187 (0.158 to 0.216)") < lines.index(
        "By race: demographic-parity difference not measurable (0.061 to 0.302)"
    )


@pytest.mark.parametrize("group_aware", [True, False])
def test_decisions_that_use_the_sensitive_attribute_are_said_with_what_it_means_in_law(make_run, group_aware):
    text = " ".join(summary(make_run(group_aware=group_aware)).split())
    assert ("Decisions use the sensitive attribute" in text and "this is not legal advice" in text) is group_aware


def test_the_last_line_says_what_to_do_next(make_run):
    run = make_run()
    assert summary(run).splitlines()[-1] == f"Next: write the report with `fedethos report {run.path}`."
    render_report(run.path)
    lines = summary(run).splitlines()
    assert lines[-2:] == [f"Report: {run.report}", f"Next: open {run.report} in a browser."]


def test_without_privacy_every_page_says_so(make_run):
    out = summary(make_run(mode="none", basis="unprotected"))
    assert "! No privacy protection" in out
    assert "epsilon (no privacy protection)" in out


def test_names_are_not_markup(make_run):
    assert "site-1[red]" in summary(make_run(site_suffix="[red]"))


def test_piped_output_has_no_escapes_and_fits(make_run, capsys):
    print_summary(make_run())
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert max(len(line) for line in out.splitlines() if not line.startswith("Next")) <= 100


def test_an_unfinished_run_has_no_summary(make_run):
    run = make_run()
    run.result.unlink()
    with pytest.raises(FedethosError) as caught:
        print_summary(run)
    assert caught.value.code == "RUN-903"
