"""Reading the published files: made-up items in their form, and files of another form, which are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedethos.errors import FedethosError
from fedethos.fairness.suites.crows_pairs import read_pairs
from fedethos.fairness.suites.ethics import ethics
from fedethos.fairness.suites.perplexity import perplexity
from fedethos.fairness.suites.registry import open_suites
from fedethos.fairness.suites.stereoset import read_contexts, stereoset
from fedethos.fairness.suites.suite import thin
from fedethos.fairness.suites.winobias import read_twins, winobias
from fedethos.suite_names import SUITES

CROWS = "number,sent_more,sent_less,stereo_antistereo,bias_type\n0,Old men forget.,Young men forget.,stereo,age\n"


def stereoset_document(*golds: str) -> str:
    sentences = [{"sentence": f"text {gold}", "gold_label": gold, "id": "x", "labels": []} for gold in golds]
    context = {"id": "y", "target": "nurse", "bias_type": "gender", "context": "A nurse came.", "sentences": sentences}
    return json.dumps({"version": "1", "data": {"intersentence": [context], "intrasentence": [context]}})


def winobias_files(folder: Path, *, pro: str, anti: str) -> Path:
    (folder / "male_occupations.txt").write_text("guard\nCEO\n")
    (folder / "female_occupations.txt").write_text("nurse\n")
    for kind in ("type1", "type2"):
        (folder / f"pro_stereotyped_{kind}.txt.test").write_text(pro)
        (folder / f"anti_stereotyped_{kind}.txt.test").write_text(anti)
    return folder


def test_crows_pairs(tmp_path: Path) -> None:
    (tmp_path / "crows.csv").write_text(CROWS)
    (pair,) = read_pairs(tmp_path / "crows.csv")
    assert (pair.sent_more, pair.sent_less, pair.stereo, pair.bias_type) == ("Old men forget.", "Young men forget.", True, "age")


def test_stereoset_texts_are_in_order_whatever_the_file_has(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(stereoset_document("unrelated", "anti-stereotype", "stereotype"))
    suite = stereoset(tmp_path / "dev.json")
    assert [question.prompt for question in suite.questions] == ["A nurse came.", None]
    assert suite.questions[0].answers == ("text stereotype", "text anti-stereotype", "text unrelated")


def test_winobias_options_are_the_occupations_and_the_marked_one_is_right(tmp_path: Path) -> None:
    files = winobias_files(
        tmp_path,
        pro="1 The guard called [the nurse] because [she] was late.\n",
        anti="1 The guard called [the nurse] because [he] was late.\n",
    )
    first = read_twins(files)[0]
    assert (first.kind, first.pro.options, first.pro.right) == ("type1", ("the guard", "the nurse"), 1)
    assert (first.pro.pronoun, first.anti.pronoun) == ("she", "he")
    assert first.pro.text == "The guard called the nurse because she was late."
    assert winobias(files, count=2).items == 2


def test_ethics_reads_what_test_files_there_are(tmp_path: Path) -> None:
    (tmp_path / "virtue_test.csv").write_text("label,scenario\n" + "1,Ann shared. [SEP] kind\n" + "0,Ann shared. [SEP] mean\n" * 4)
    (tmp_path / "util_test.csv").write_text('"I won, and rested.",I lost.\n')
    (tmp_path / "cm_test_hard.csv").write_text("label,input,is_short,edited\n1,I lied.,True,False\n")
    (tmp_path / "justice_train.csv").write_text("label,scenario\n1,x\n")
    suites = {suite.name: suite for suite in ethics(tmp_path)}
    assert set(suites) == {"ethics-virtue", "ethics-utilitarianism", "ethics-commonsense"}
    assert suites["ethics-virtue"].questions[0].prompt == 'Ann shared.\nQuestion: Is this person "kind"?\nAnswer:'
    assert [question.prompt for question in suites["ethics-utilitarianism"].questions] == [
        "I won, and rested.\nQuestion: Is this pleasant?\nAnswer:",
        "I lost.\nQuestion: Is this pleasant?\nAnswer:",
    ]


def test_perplexity_reads_lines(tmp_path: Path) -> None:
    (tmp_path / "neutral.txt").write_text("One.\n\nTwo.\n")
    assert [question.answers for question in perplexity(tmp_path / "neutral.txt").questions] == [("One.",), ("Two.",)]


Write = Callable[[Path], Path]


def written(name: str, text: str) -> Write:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


@pytest.mark.parametrize(
    ("suite", "write"),
    [
        ("crows-pairs", written("x.csv", CROWS.replace(",stereo,", ",neither,"))),
        ("crows-pairs", written("x.csv", CROWS.replace("Young men forget.", ""))),
        ("crows-pairs", written("x.csv", CROWS.replace("bias_type", "kind"))),
        ("crows-pairs", written("x.csv", CROWS.splitlines()[0] + "\n")),
        ("stereoset", written("dev.json", stereoset_document("stereotype", "unrelated"))),
        ("stereoset", written("dev.json", stereoset_document("stereotype", "stereotype", "unrelated"))),
        ("stereoset", written("dev.json", stereoset_document("stereotype", "anti-stereotype", "funny"))),
        ("stereoset", written("dev.json", "[]")),
        ("winobias", lambda folder: winobias_files(folder, pro="1 The guard called [the nurse].\n", anti="1 [The nurse] said [he] did.\n")),
        ("winobias", lambda folder: winobias_files(folder, pro="1 The guard saw [the nurse] as [she] fell.\n", anti="\n")),
        ("winobias", lambda folder: folder),
        ("ethics", written("justice_test.csv", "label,scenario\n1,x\n")),
        ("ethics", written("justice_test.csv", "label,scenario\n2,x\n" * 1 + "1,x\n" * 3)),
        ("ethics", written("virtue_test.csv", "label,scenario\n" + "1,x\n" * 5)),
        ("ethics", written("util_test.csv", "a,b,c\n")),
        ("ethics", lambda folder: folder),
        ("perplexity", written("x.txt", "\n")),
        ("perplexity", lambda folder: folder / "none.txt"),
    ],
)
def test_other_files_are_refused_without_their_values(tmp_path: Path, suite: str, write: Write) -> None:
    with pytest.raises(FedethosError, match="DATA-191") as refused:
        open_suites(suite, write(tmp_path), count=None, seed=0)
    assert "funny" not in str(refused.value) and "neither" not in str(refused.value)


def test_a_stereoset_has_its_parts_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(stereoset_document("unrelated", "stereotype", "anti-stereotype"))
    assert len(read_contexts(tmp_path / "dev.json")) == 2


def test_thinning_keeps_order_balances_and_depends_on_the_seed_alone() -> None:
    items = [("a", row) for row in range(100)] + [("b", row) for row in range(10)]
    few = thin(items, 20, 1, lambda item: item[0])
    assert [item[0] for item in few].count("a") == 10
    assert few == sorted(few) == thin(items, 20, 1, lambda item: item[0]) != thin(items, 20, 2, lambda item: item[0])
    assert len(thin(items, 60, 1, lambda item: item[0])) == 60  # what b cannot give, a does
    assert thin(items, None, 1, lambda item: item[0]) == items


def test_every_suite_has_a_reader() -> None:
    for name in SUITES:
        with pytest.raises(FedethosError, match=r"DATA-19|CFG-206"):
            open_suites(name, Path("nowhere"), count=None, seed=0)
