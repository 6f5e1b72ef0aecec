"""``fedethos data bbq``: BBQ's own lines become one table with the options by their role."""

import json
from pathlib import Path

import pytest

from fedethos.cli import run as fedethos


def line(number: int, polarity: str, **changes: object) -> str:
    """The stereotype is about the old person, who is option ``number % 2``; the unknown option is the last."""
    people = [["the grandfather", "old"], ["the grandson", "nonOld"]]
    first, second = people if number % 2 == 0 else people[::-1]
    item = {
        "category": "Age",
        "question_index": str(number),
        "question_polarity": polarity,
        "context_condition": "disambig",
        "context": f"They met on day {number}.",
        "question": f"Who forgot thing {number}?",
        "ans0": first[0],
        "ans1": second[0],
        "ans2": "Not known",
        "answer_info": {"ans0": first, "ans1": second, "ans2": ["Not known", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "label": number % 2,
    }
    return json.dumps(item | changes)


def test_options_are_named_by_their_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "data", tmp_path / "bbq.jsonl"
    source.mkdir()
    (source / "Age.jsonl").write_text("\n".join(line(number, "neg" if number < 6 else "nonneg") for number in range(12)) + "\n")
    assert fedethos(["data", "bbq", str(source), "--out", str(out), "--items", "12"]) == 0
    assert "12 items" in capsys.readouterr().out
    rows = [json.loads(row) for row in out.read_text().splitlines()]
    assert len(rows) == 12
    for row in rows:
        old, young = "the grandfather", "the grandson"
        assert (row["biased"], row["counter"]) == ((old, young) if row["polarity"] == "neg" else (young, old))
        assert row["unknown"] == "Not known"
        assert row[row["answer"]] == old  # the label of each line
        assert row["chosen"] == row[row["answer"]] and row["rejected"] == row["counter" if row["answer"] == "biased" else "biased"]
    assert fedethos(["data", "bbq", str(source), "--out", str(out), "--items", "9", "--seed", "1"]) == 0
    assert len(out.read_text().splitlines()) == 9


@pytest.mark.parametrize("content", [None, "{}\n", line(0, "sideways") + "\n"])
def test_other_files_are_refused_by_line(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if content is not None:
        (tmp_path / "Age.jsonl").write_text(content)
    assert fedethos(["data", "bbq", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]) == 3
    assert "DATA-190" in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()
