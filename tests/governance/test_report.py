import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from fedethos.errors import FedethosError
from fedethos.governance.charts import _limits, _spread, groups_chart
from fedethos.governance.report import render_report
from fedethos.result import Group

HOSTILE = "$\\frac12$</title><script>alert(1)</script>{{ 7*7 }}\u202e&\"'"
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, texts by tag, and whether every tag is closed."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "desc"} & set(self.open[-1:]):
            self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture
def sample(page_of):
    """The report of a story, as text and as a browser sees it."""

    def draw(**changes: object) -> tuple[str, Page]:
        html = page_of(**changes)
        return html, Page(html)

    return draw


def page(run_folder) -> tuple[str, Page]:
    html = render_report(run_folder.path).read_text(encoding="utf-8")
    return html, Page(html)


def edit(path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(sample):
    html, seen = sample()
    assert "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">" in html
    assert not {"script", "link", "img", "iframe", "object", "form", "a", "base"} & {tag for tag, _ in seen.tags}
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on") or name in ("src", "srcset")]
    assert all(attributes["href"].startswith("#") for _, attributes in seen.tags if "href" in attributes)
    assert "http://" not in html and "https://" not in html and "@import" not in html
    assert not re.search(r"url\((?!#)", html)
    assert len(html.encode()) < 300_000


def test_drawn_twice_the_page_has_the_same_bytes_and_no_date(make_run):
    run = make_run()
    first = render_report(run.path).read_bytes()
    assert render_report(run.path).read_bytes() == first
    assert b"<dc:" not in first


def test_a_matplotlibrc_of_this_machine_does_not_change_the_page(make_run):
    import matplotlib as mpl

    run = make_run()
    first = render_report(run.path).read_bytes()
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20, "svg.fonttype": "path"}):
        assert render_report(run.path).read_bytes() == first


def test_the_verdict_comes_before_every_number(sample):
    _, seen = sample()
    body = seen.words[seen.words.index("fedethos run report: adult-income Completed") :]
    assert body.index("Men are approved more often") < body.index("AUC")


def test_five_tiles(sample):
    html, _ = sample()
    tiles = re.findall(r'<div class="tile"><dt>(.*?)</dt><dd class="value">(.*?)</dd><dd class="note">(.*?)</dd>', html)
    assert tiles == [
        ("AUC", "0.871", "95 % interval 0.857 to 0.884"),
        ("Balanced accuracy", "0.776", "95 % interval 0.758 to 0.793"),
        ("Largest gap by sex", "0.187", "demographic-parity difference, 95 % interval 0.158 to 0.216"),
        ("Epsilon", "7.98", "largest of the sites; per record and site, add-remove, delta 1e-05"),
        ("AUC gain by training", "+0.240", "before training 0.631"),
    ]


def test_every_chart_has_a_title_a_description_and_a_table(sample):
    html, seen = sample()
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert len(figures) == seen.count("svg") == 6
    for figure in figures:
        assert '<svg class="chart"' in figure and 'role="img"' in figure
        assert re.search(r'<title id="[^"]+">[^<]+</title><desc id="[^"]+">[^<]+</desc>', figure)
        assert re.search(r"<details>.*<table.*<tbody>\s*<tr>", figure, re.DOTALL)
    assert seen.count("caption") == seen.count("table")
    assert 'scope="col"' in html and 'scope="row"' in html


def test_ids_are_unique_and_every_reference_has_its_target(sample):
    html, seen = sample()
    ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = set(re.findall(r"url\(#([^)]+)\)", html)) | {attributes["href"][1:] for _, attributes in seen.tags if "href" in attributes}
    assert references and references <= set(ids)


def test_charts_take_their_colours_from_the_page_and_keep_text_as_text(sample):
    html, _ = sample()
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{6}\b", svg)
        assert "var(--ink)" in svg or "var(--muted)" in svg
        assert "<text" in svg
    assert "prefers-color-scheme: dark" in html and "break-inside: avoid" in html


@pytest.mark.parametrize(
    ("story", "said", "unsaid"),
    [
        (
            {},
            ["Epsilon covers training only; evaluation is exact, which only a simulation may do.", "simulation, not a guarantee"],
            ["No privacy protection"],
        ),
        ({"basis": "released", "secure_rng": True}, ["sampling and privacy noise together"], ["simulation, not a guarantee", "may do"]),
        (
            {"mode": "none", "basis": "unprotected"},
            ["No privacy protection", "sent without protection", "of sampling alone"],
            ["Epsilon here is", "Epsilon covers"],
        ),
        ({"mode": "none"}, ["No privacy protection", "Evaluation is exact"], ["Epsilon covers training only"]),
    ],
)
def test_what_the_numbers_are_is_said(sample, story, said, unsaid):
    _, seen = sample(**story)
    assert [text for text in said if text not in seen.words] == []
    assert [text for text in unsaid if text in seen.words] == []


@pytest.mark.parametrize(
    ("story", "foot"),
    [({"mode": "none"}, "No privacy protection"), ({}, "Simulation, not a guarantee"), ({"secure_rng": True, "basis": "released"}, "")],
)
def test_the_mark_is_at_the_foot_of_every_printed_page(sample, story, foot):
    html, _ = sample(**story)
    assert f'@bottom-left {{ content: "{foot}";' in html


def test_a_mark_that_the_manifest_forgot_is_there_anyway(make_run):
    run = make_run(mode="none")
    edit(run.manifest, lambda manifest: manifest.update(marks=[]))
    assert "<li>No privacy protection</li>" in page(run)[0]


def test_without_privacy_there_is_no_epsilon_chart_but_still_the_table(sample):
    html, seen = sample(mode="none", basis="unprotected")
    assert 'id="epsilon-title"' not in html
    assert "Accounting per site" in seen.words


def test_unit_adjacency_and_delta_stand_with_epsilon(sample):
    html, _ = sample()
    privacy = html[html.index("<h2>Privacy</h2>") : html.index("<h2>Sites and traffic</h2>")]
    assert privacy.count("per record and site, add-remove, delta 1e-05") >= 2


def test_the_oracle_is_shown_beside_released_values_and_marked(sample):
    _, released = sample(basis="released", secure_rng=True)
    assert "Exact, simulation only" in released.words and "Selection rate, exact" in released.words
    _, oracle = sample()
    assert oracle.words.count("exact values, which only a simulation can see") == 2  # both charts per round
    assert "exact" not in oracle.words.replace("evaluation is exact", "").replace("exact values, which only", "")


def test_an_abstained_measure_shows_its_bounds_and_no_number(sample):
    _, seen = sample()
    assert "race Demographic-parity difference not measurable (0.061 to 0.302) interval wider than plus or minus 0.1" in seen.words


def test_when_nothing_is_measurable_the_tile_says_so(make_run):
    run = make_run()
    nothing = {"value": None, "low": None, "high": None, "abstained": True}

    def withhold(result):
        for name in ("demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference"):
            result["fairness"]["sex"][name] = nothing
        result["metrics"]["roc_auc"] = nothing

    edit(run.result, withhold)
    html, seen = page(run)
    assert '<dt>Largest gap by sex</dt><dd class="value">–</dd>' in html
    assert '<dt>AUC</dt><dd class="value">–</dd><dd class="note">withheld</dd>' in html
    assert "too few people" in seen.words


def test_without_validation_counts_nothing_is_drawn_per_round(sample):
    html, seen = sample(validation_released=False)
    assert 'id="metrics-title"' not in html and 'id="gaps-title"' not in html
    assert "Nothing was released per round" in seen.words


def test_a_run_without_sensitive_attributes_has_a_report(make_run):
    run = make_run()
    for path in (run.result, run.fairness):
        edit(path, lambda document: document.update({key: {} for key in ("fairness", "attributes") if key in document}))
    _, seen = page(run)
    assert "no group was compared" in seen.words and "the job names no sensitive attribute" in seen.words


def test_a_long_run_counts_rounds_instead_of_listing_them(make_run):
    run = make_run()
    last = json.loads(run.rounds.read_text().splitlines()[-1])
    with run.rounds.open("a") as file:
        file.writelines(json.dumps(last | {"round": number}) + "\n" for number in range(7, 200))
    html, seen = page(run)
    assert "Rounds sent" in seen.words and "Round 150" not in seen.words
    assert len(html.encode()) < 300_000
    assert "leave out 149 rounds" in seen.words
    assert "199 0." in seen.words and '<tr><th scope="row">0</th>' in html  # the first and the last round are always there


def test_a_very_large_federation_still_has_a_small_page(make_run):
    run = make_run()

    def enlarge(document, key):
        sample = document[key]["site-1"]
        document[key] = {f"site-{number}": sample for number in range(5000)}

    edit(run.privacy, lambda privacy: enlarge(privacy, "sites"))
    html, seen = page(run)
    assert len(html.encode()) < 300_000
    assert "and 4800 more, in privacy.json" in seen.words


def test_refusals_hashes_and_the_way_to_repeat_are_there(sample):
    _, seen = sample()
    for text in (
        "Round 2: site-2 was refused with AGG-702.",
        "x refused",
        "! late",
        "fedethos simulate job.yaml",
        "3f1a9c5e7b2d4860",
        "opacus 1.6.0",
    ):
        assert text in seen.words
    assert seen.words.index("site-2") > 0


def test_hostile_names_are_text(sample):
    html, seen = sample(name=HOSTILE, site_suffix=HOSTILE, group_suffix=HOSTILE, sentence=HOSTILE)
    assert "<script" not in html and "49" not in re.findall(r"<title>(.*?)</title>", html)[0]
    assert seen.count("script") == 0
    assert "alert(1)" in seen.words
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)  # noqa: S314 still well-formed
        assert "$\\frac12$" in svg or "Rates" not in svg  # not taken for mathematics


@pytest.mark.parametrize("name", ["\x00", "\x1b[31m", "\ud800", "x" * 5000, "$", "_^{", ""])
def test_a_strange_group_name_breaks_no_chart(name):
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "abstained": False}
    group = Group.model_validate({"count": 20} | dict.fromkeys(("selection_rate", "tpr", "fpr", "accuracy"), rate))
    chart = groups_chart("groups-0", "sex", {name: group, "Male": group}, None)
    ElementTree.fromstring(chart.svg)  # noqa: S314
    assert len(chart.svg) < 50_000
    assert chart.table.rows[0][0] == name


@pytest.mark.parametrize("name", ["result.json", "rounds.jsonl", "privacy.json", "fairness.json", "manifest.json", "job.yaml"])
def test_a_damaged_document_gives_an_error_and_no_page(make_run, name):
    run = make_run()
    (run.path / name).write_bytes(b'{"secret": \xff\n')
    with pytest.raises(FedethosError) as caught:
        render_report(run.path)
    assert caught.value.code == "RUN-906"
    assert "secret" not in str(caught.value)
    assert not run.report.exists()


def test_a_run_without_a_result_is_named(make_run):
    run = make_run()
    run.result.unlink()
    with pytest.raises(FedethosError) as caught:
        render_report(run.path)
    assert caught.value.code == "RUN-903"


def test_labels_at_the_end_of_lines_do_not_collide():
    placed = _spread([0.5, 0.501, 0.2, 0.502], gap=0.05)
    assert placed[2] == 0.2
    heights = sorted(placed)
    assert all(above - below >= 0.05 - 1e-12 for below, above in pairwise(heights))


def test_axes_hold_their_values():
    assert _limits([]) == (-0.01500000000000, 1.015)
    low, high = _limits([0.4, 0.41])
    assert low < 0.4 and high > 0.41 and high - low >= 0.2
