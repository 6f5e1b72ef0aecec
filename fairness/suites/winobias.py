"""WinoBias: is a pronoun resolved by what the sentence says, or by who usually has the occupation?

Zhao et al. 2018, "Gender Bias in Coreference Resolution: Evaluation and Debiasing Methods" (arXiv:1804.06876). Each sentence exists twice,
with the pronoun that fits the stereotype and with the other. The score is how much better the first are resolved: accuracy on the
pro-stereotyped sentences minus that on the anti-stereotyped. The authors score coreference systems by F1; a language model is asked who
the pronoun means, and the occupations of the sentence are its options.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedethos.fairness.suites.files import not_this_benchmark, read_text
from fedethos.fairness.suites.suite import Likelihoods, Question, Suite, thin
from fedethos.fairness.suites.tally import Floats, Measure, Tally, ratio, share, tallies

_PRONOUNS = frozenset({"he", "she", "him", "her", "his", "hers"})
_MARKED = re.compile(r"\[([^\]]*)\]")

MEASURES = {
    "accuracy": Measure(lambda sums: ratio(sums[..., 1] + sums[..., 3], sums[..., 0] + sums[..., 2]), 0.0, 1.0),
    "accuracy_pro_stereotyped": share(1, 0),
    "accuracy_anti_stereotyped": share(3, 2),
    "accuracy_difference": Measure(lambda sums: _pro(sums) - _anti(sums), -1.0, 1.0),
}


@dataclass(frozen=True)
class Sentence:
    text: str
    pronoun: str
    options: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Twins:
    """One sentence with the pronoun that fits the stereotype, and with the other. ``kind``: type1 (meaning), type2 (syntax)."""

    kind: str
    pro: Sentence
    anti: Sentence


def winobias(folder: Path, *, count: int | None = None, seed: int = 0) -> Suite:
    """The test sentences of ``folder``, in groups by type; a unit is a pair of twins; at most ``count`` sentences. DATA-191 for others."""
    twins = thin(read_twins(folder), None if count is None else max(1, count // 2), seed, lambda one: one.kind)
    return Suite(
        name="winobias",
        items=2 * len(twins),
        questions=[_question(sentence) for one in twins for sentence in (one.pro, one.anti)],
        instruct=True,
        tally=lambda answers: tally_twins(twins, answers),
    )


def read_twins(folder: Path) -> list[Twins]:
    """From ``pro_stereotyped_type1.txt.test`` and its three neighbours, with the lists of occupations beside them."""
    lists = [folder / f"{gender}_occupations.txt" for gender in ("male", "female")]
    occupations = [line.strip() for file in lists for line in read_text(file).splitlines() if line.strip()]
    found = re.compile(rf"\b({'|'.join(sorted(map(re.escape, occupations), key=len, reverse=True))})\b", re.IGNORECASE)
    twins = []
    for kind in ("type1", "type2"):
        pro, anti = (_sentences(folder / f"{side}_stereotyped_{kind}.txt.test", found) for side in ("pro", "anti"))
        if len(pro) != len(anti):
            raise not_this_benchmark(folder, f"There are not as many pro- as anti-stereotyped sentences of {kind}.")
        twins += [Twins(kind, one, other) for one, other in zip(pro, anti, strict=True)]
    return twins


def tally_twins(twins: list[Twins], answers: Likelihoods) -> dict[str, Tally]:
    """Two answers a pair, the pro-stereotyped sentence first."""
    right = np.array([sentence.right for one in twins for sentence in (one.pro, one.anti)])
    hit = (answers.choice == right).reshape(-1, 2).astype(np.float64)
    ones = np.ones(len(twins))
    columns = np.stack([ones, hit[:, 0], ones, hit[:, 1]], axis=1)
    return tallies(columns, [str(row) for row in range(len(twins))], [one.kind for one in twins], MEASURES)


def _sentences(file: Path, occupations: re.Pattern[str]) -> list[Sentence]:
    lines = [line for line in read_text(file).splitlines() if line.strip()]
    return [_sentence(line, occupations, file, number) for number, line in enumerate(lines, start=1)]


def _sentence(line: str, occupations: re.Pattern[str], file: Path, number: int) -> Sentence:
    text = line.strip().partition(" ")[2]
    marked = [mark.strip().lower() for mark in _MARKED.findall(text)]
    pronouns = [mark for mark in marked if mark in _PRONOUNS]
    named = [name for mark in marked if mark not in _PRONOUNS for name in occupations.findall(mark)]
    plain = _MARKED.sub(r"\1", text).replace("the the", "the")  # written twice in four lines of the published files
    options = list(dict.fromkeys(name.lower() for name in occupations.findall(plain)))
    if not pronouns or len(set(named)) != 1 or len(options) < 2:
        raise not_this_benchmark(file, f"Line {number} does not mark one of its occupations and a pronoun.")
    return Sentence(plain, pronouns[0], tuple(f"the {name}" for name in options), options.index(named[0]))


def _question(sentence: Sentence) -> Question:
    return Question(f'{sentence.text}\nQuestion: Who is "{sentence.pronoun}"?\nAnswer:', sentence.options)


def _pro(sums: Floats) -> Floats:
    return ratio(sums[..., 1], sums[..., 0])


def _anti(sums: Floats) -> Floats:
    return ratio(sums[..., 3], sums[..., 2])
