"""Runs side by side: what may share a table, what is refused, what differs, and a page that nobody's names can break."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from fedethos.cli import run
from fedethos.errors import FedethosError
from fedethos.governance.charts import Table
from fedethos.governance.compare import Number, compare, flat
from fedethos.governance.compare_page import differences, page
from fedethos.governance.tradeoff import Point, spread, tradeoff_chart
from fedethos.storage import canonical_json
from fedethos.tested_people import share_people

HOSTILE = "a<script>alert(1)</script>{{ 7*7 }}&\"'"


class Page(HTMLParser):
    """The tags that a browser sees, and the text outside the style sheet."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.text.append(data)

    def count(self, tag: str) -> int:
        return self.tags.count(tag)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def change(folder: Path, **overrides: object) -> Path:
    """Give the job of a sample run other values: ``privacy__epsilon=3``."""
    import yaml

    job = yaml.safe_load((folder / "job.yaml").read_text())
    for dotted, value in overrides.items():
        *sections, key = dotted.split("__")
        section = job
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    return folder


def two(make_run, **overrides: object) -> list[Path]:
    return [make_run("one").path, change(make_run("two").path, **overrides)]


def refused(code: str, paths: list[Path]) -> None:
    with pytest.raises(FedethosError) as caught:
        compare(paths, basis="released", anyway=False)
    assert caught.value.code == code


def test_runs_of_one_kind_share_a_table_and_only_differing_keys_are_shown(make_run) -> None:
    found = compare(two(make_run, privacy__epsilon=3.0, training__learning_rate=0.5), basis="released", anyway=False)
    [(kind, entries)] = found.tables.items()
    assert (kind.basis, kind.over_seeds, [entry.name for entry in entries]) == ("oracle", False, ["one", "two"])
    assert set(found.differing) == {"privacy.epsilon", "training.learning_rate"}
    assert found.differing["privacy.epsilon"] == {"one": 8.0, "two": 3.0}


@pytest.mark.parametrize(
    "overrides",
    [
        {"simulation__seed": 99},
        {"data__split": {"train": 0.5, "validation": 0.3, "test": 0.2}},
        {"data__na_values": ["-"]},
        {"data__limit": 0.5},
        {"simulation__sites": 4},
    ],
)
def test_runs_on_other_test_people_are_refused(make_run, overrides: dict[str, object]) -> None:
    refused("RUN-953", two(make_run, **overrides))


def test_a_fixed_split_does_not_depend_on_the_seed_nor_the_people_on_the_text(make_run) -> None:
    paths = two(make_run, simulation__seed=99, data__split_salt="x", data__text="{age} years old")
    change(paths[0], data__split_salt="x")
    assert compare(paths, basis="released", anyway=False).same_people


def test_other_counts_of_test_people_are_other_people(make_run) -> None:
    paths = two(make_run)
    result = json.loads((paths[1] / "result.json").read_text())
    result["oracle"]["people"]["test"] += 1
    (paths[1] / "result.json").write_bytes(canonical_json(result))
    refused("RUN-953", paths)


def test_anyway_says_so_on_the_page(make_run, tmp_path: Path) -> None:
    paths = two(make_run, simulation__seed=99)
    out = tmp_path / "page.html"
    assert run(["compare", *map(str, paths), "--anyway", "--out", str(out)]) == 0
    assert "Tested on different people" in Page(out.read_text()).words


def test_another_basis_has_its_own_table(make_run) -> None:
    paths = [make_run("one").path, make_run("two", basis="released").path]
    assert [kind.basis for kind in compare(paths, basis="released", anyway=False).tables] == ["oracle", "released"]
    assert [kind.basis for kind in compare(paths, basis="oracle", anyway=False).tables] == ["oracle"]


def test_exact_values_are_asked_for_in_vain_where_there_are_none(make_run) -> None:
    paths = [make_run("one").path, make_run("two", basis="unprotected").path]
    with pytest.raises(FedethosError, match="RUN-954"):
        compare(paths, basis="oracle", anyway=True)


def test_one_run_is_nothing_to_compare_and_no_run_twice(make_run) -> None:
    path = make_run("one").path
    refused("RUN-952", [path])
    refused("RUN-952", [path, path])


def test_runs_in_folders_of_the_same_name_are_told_apart(make_run) -> None:
    found = compare([make_run("a/run").path, make_run("b/run").path], basis="released", anyway=False)
    assert [entry.name for entries in found.tables.values() for entry in entries] == ["a/run", "b/run"]


def test_a_group_without_some_seeds_is_share_people_and_another_seed_is_not() -> None:
    assert share_people([frozenset("ab"), frozenset("a")])
    assert not share_people([frozenset("ab"), frozenset("c")])


def test_a_sweep_is_a_row_per_point_with_its_intervals(make_run, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    points = []
    for epsilon in (3, 8):
        make_run(f"sweep/epsilon={epsilon}/seed-7")
        change(folder / f"epsilon={epsilon}/seed-7", privacy__epsilon=float(epsilon))
        measures = {"balanced_accuracy": {"mean": 0.7, "low": 0.65, "high": 0.75, "count": 3}}
        finished = {
            "folder": f"epsilon={epsilon}/seed-7",
            "seed": 7,
            "job_sha256": "0",
            "status": "completed",
            "code": None,
            "basis": "oracle",
            "epsilon": float(epsilon),
            "verdict": False,
            "values": {},
        }
        points.append(
            {
                "name": f"epsilon={epsilon}",
                "settings": {"privacy.epsilon": str(epsilon)},
                "basis": "oracle",
                "epsilon": float(epsilon),
                "runs": [finished],
                "measures": measures,
            }
        )
    document = {
        "schema": "fedethos/sweep/v1",
        "name": "x",
        "basis": "oracle",
        "seeds": [7],
        "same_people": True,
        "points": points,
        "paired": [],
    }
    (folder / "sweep.json").write_bytes(canonical_json(document))
    single = make_run("alone").path
    found = compare([folder, single], basis="oracle", anyway=False)
    seeds, alone = found.tables.items()
    assert [entry.name for entry in seeds[1]] == ["sweep/epsilon=3", "sweep/epsilon=8"]
    assert (seeds[1][0].metrics["balanced_accuracy"].low, seeds[1][0].metrics["roc_auc"].value) == (0.65, None)
    assert (seeds[0].over_seeds, alone[0].over_seeds) == (True, False)
    html = page(found)
    no_gap = Point("x", "3.00", Number(0.0), Number(0.5), verdict=False)
    drawn = tradeoff_chart("c", "t", "d", [no_gap, replace(no_gap, label="y", verdict=True)], axes=("a", "b"), table=Table((), ()))
    assert drawn is not None and drawn.svg.count("no verdict") == 1
    assert "means over seeds" in html and "No fairness verdict in some runs of sweep/epsilon=3, sweep/epsilon=8" in html


def test_a_damaged_sweep_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"points": "CANARY"}')
    with pytest.raises(FedethosError, match="RUN-906") as caught:
        compare([tmp_path], basis="oracle", anyway=False)
    assert "CANARY" not in str(caught.value)


def test_the_table_and_the_json_hold_the_numbers_of_result_json(make_run, capsys) -> None:
    paths = [str(path) for path in two(make_run, privacy__epsilon=3.0)]
    assert run(["compare", *paths]) == 0
    printed = capsys.readouterr().out
    for words in (
        "0.871 (0.857 to 0.884)",
        "0.083 (0.052 to 0.131)",
        "not measurable (0.061 to 0.302)",
        "7.98",
        "privacy.epsilon",
        "42.7 MB",
    ):
        assert words in printed, words
    assert run(["compare", *paths, "--json"]) == 0
    [table] = json.loads(capsys.readouterr().out)["tables"]
    assert table["rows"][1]["fairness"]["race"]["equalized_odds_difference"] == {"value": None, "low": 0.07, "high": 0.481}


def test_the_page_has_a_picture_and_a_table_of_every_gap_and_no_script(make_run) -> None:
    html = page(compare(two(make_run, privacy__epsilon=3.0), basis="released", anyway=False))
    seen = Page(html)
    assert seen.count("script") == seen.count("link") == seen.count("img") == 0
    assert seen.count("svg") == seen.count("figure") == 2  # by race nothing is measurable, so nothing is drawn
    assert "Content-Security-Policy" in html and "default-src 'none'" in html
    assert "not measurable (0.070 to 0.481)" in seen.words


def test_no_name_breaks_the_page(make_run) -> None:
    paths = [make_run(HOSTILE.replace("/", "")).path, make_run("two", group_suffix=HOSTILE).path]
    html = page(compare(paths, basis="released", anyway=False))
    assert Page(html).count("script") == 0 and "49" not in Page(html).words.split()
    assert "alert(1)" in Page(html).words


def test_labels_keep_their_distance_and_stay_inside() -> None:
    placed = spread([0.5, 0.5, 0.5, 0.99, 1.0, 0.0], 0.1)
    assert all(later - earlier >= 0.1 - 1e-9 for earlier, later in pairwise(sorted(placed)))
    assert min(placed) >= 0 and max(placed) <= 1
    assert spread([0.2, 0.8], 0.1) == [0.2, 0.8]


def test_what_differs_is_laid_out_so_that_it_stays_narrow(make_run) -> None:
    paths = two(make_run, privacy__epsilon=3.0)
    few = differences(compare(paths, basis="released", anyway=False))
    assert few == Table(("Run", "privacy.epsilon"), (("one", "8.0"), ("two", "3.0")))
    change(paths[1], training__learning_rate=0.5, lora__r=2)
    many = differences(compare(paths, basis="released", anyway=False))
    assert many.columns == ("Job key", "one", "two") and ("lora.r", "8", "2") in many.rows


def test_nested_keys_are_dotted() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
