"""BBQ's items as records: roles by polarity, and templates that share a question are one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedethos.data.bbq import read_bbq, write_table
from fedethos.errors import FedethosError


def line(index: str, question: str, *, category: str = "Age", polarity: str = "neg", label: int = 2) -> str:
    return json.dumps(
        {
            "category": category,
            "question_index": index,
            "question_polarity": polarity,
            "context_condition": "ambig" if label == 2 else "disambig",
            "context": "A grandfather and a grandson came.",
            "question": question,
            "ans0": "The grandfather",
            "ans1": "The grandson",
            "ans2": "Unknown",
            "answer_info": {"ans0": ["grandfather", "old"], "ans1": ["grandson", "nonOld"], "ans2": ["Unknown", "unknown"]},
            "additional_metadata": {"stereotyped_groups": ["old"]},
            "label": label,
        }
    )


def test_the_biased_answer_depends_on_the_polarity(tmp_path: Path) -> None:
    lines = [line("1", "Who is late?", label=0), line("1", "Who is early?", polarity="nonneg", label=0)]
    (tmp_path / "Age.jsonl").write_text("\n".join(lines))
    negative, positive = read_bbq(tmp_path)
    assert (negative.biased, negative.answer) == ("The grandfather", "biased")
    assert (positive.biased, positive.answer) == ("The grandson", "counter")


def test_templates_that_share_a_question_are_one_across_files_and_chains(tmp_path: Path) -> None:
    """1 and 2 share one question, 2 and SES/9 another, so all three are one; 3 stays alone."""
    (tmp_path / "Age.jsonl").write_text(
        "\n".join([line("1", "Who is late?"), line("2", "Who is late?"), line("2", "Who is rich?"), line("3", "Who is ill?")])
    )
    (tmp_path / "SES.jsonl").write_text(line("9", "Who is rich?", category="SES"))
    items = read_bbq(tmp_path)
    assert [item.template for item in items] == ["Age/1", "Age/1", "Age/1", "Age/3", "Age/1"]
    assert [item.category for item in items] == ["Age", "Age", "Age", "Age", "SES"]


def test_the_table_keeps_a_question_in_one_template(tmp_path: Path) -> None:
    (tmp_path / "Age.jsonl").write_text("\n".join(line(str(number), f"Who is number {number % 5}?") for number in range(20)))
    assert write_table(read_bbq(tmp_path), tmp_path / "bbq.jsonl", count=20, seed=1) == 20
    rows = [json.loads(text) for text in (tmp_path / "bbq.jsonl").read_text().splitlines()]
    assert len({row["template"] for row in rows}) == len({row["question"] for row in rows}) == 5


def test_another_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedethosError, match="DATA-190"):
        read_bbq(tmp_path)
    (tmp_path / "Age.jsonl").write_text('{"category": "Age"}')
    with pytest.raises(FedethosError, match="DATA-190"):
        read_bbq(tmp_path)
