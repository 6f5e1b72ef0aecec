"""Identity terms: words that show who a person is, in aligned sets, and the text that reads as if it were somebody else.

A list maps an attribute to sets, ``sex: [[he, she], [his, her], [him, her], …]``. Each term becomes the next of its set (of two terms:
the other), all at once, as whole words, in the case of the original. A term in two sets, such as ``her``, becomes ``his`` by the first of
them when a word follows ("her dog") and ``him`` by the second when none does, or only a function word ("saw her and").
Swapping twice gives the text back where every set has two terms, no term is in two sets, and partners have as many words.

Prior work: Lu et al. 2018, "Gender Bias in Neural Natural Language Processing" (counterfactual data augmentation); Garg et al. 2019,
"Counterfactual Fairness in Text Classification through Robustness". Next: ``fedethos.data.counterfactual``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from fedethos import yamltext
from fedethos.errors import FedethosError

TermSets = Sequence[Sequence[str]]
Source = str | Mapping[str, TermSets]

BUILTIN = "builtin:"
_WORD_FOLLOWS = re.compile(r"[ \t]+([^\W\d_][\w'-]*)")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a about after again an and any are as at because been before both but by can could did do does during for from had has have he "
        "how i if in into is it may might must no nor not of off on or out over shall she should so some than that the their then there "
        "they this through to too under until up upon was we were what when where which while who why will with without would you",
    )
)


class Swapper:
    """Swaps the terms of one attribute; ``swapper(text)`` is the counterfactual text, equal to ``text`` where no term occurs.

    Raises
    ------
    FedethosError
        DATA-171 for a set of fewer than two different terms, a term that is empty, has marks at its ends, or is in three sets.
    """

    def __init__(self, sets: TermSets) -> None:
        self.sets = [list(terms) for terms in sets]
        self._next: dict[str, list[str]] = {}
        for terms in sets:
            _check_set(terms)
            for term, following in zip(terms, [*terms[1:], terms[0]], strict=True):
                self._next.setdefault(_key(term), []).append(following)
        if not sets or any(len(following) > 2 for following in self._next.values()):
            raise _refused("an attribute has no sets, or a term stands in more than two")
        longest_first = sorted(self._next, key=len, reverse=True)
        alternatives = "|".join(r"\s+".join(re.escape(word) for word in key.split(" ")) for key in longest_first)
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)

    def __call__(self, text: str) -> str:
        return self._pattern.sub(self._swapped, text)

    def _swapped(self, match: re.Match[str]) -> str:
        found = match.group()
        following = self._next.get(_key(found))
        if following is None:  # letters that only look equal without regard to case, such as a dotless i
            return found
        return _in_case_of(found, following[0] if len(following) == 1 or _before_a_word(match) else following[1])


def read_identity_terms(source: Source | None, *, base: Path) -> dict[str, Swapper]:
    """Swappers by attribute, from ``builtin:NAME``, a YAML file (relative to ``base``) or the mapping itself; {} for None.

    A key may name several attributes with the same terms: ``sex, gender``.

    Raises
    ------
    FedethosError
        DATA-170 when there is no such list, or it cannot be read; DATA-171 when it is not attributes with sets of terms.
    """
    content: object = {} if source is None else source
    if isinstance(content, str):
        try:
            content = yamltext.parse(_read(content, base)).data
        except yamltext.NotYamlError as error:
            raise _refused(error.reason + (f", line {error.line}" if error.line else "")) from None
    if not isinstance(content, Mapping) or (not content and source is not None):
        raise _refused("it is not a mapping from attributes to sets of terms")
    swappers: dict[str, Swapper] = {}
    for key, sets in content.items():
        if not isinstance(sets, list | tuple) or not all(isinstance(terms, list | tuple) for terms in sets):
            raise _refused("an attribute does not hold a list of sets")
        swappers |= dict.fromkeys((name.strip() for name in str(key).split(",")), Swapper(sets))
    return swappers


def _read(source: str, base: Path) -> str:
    if source.startswith(BUILTIN):
        name = source.removeprefix(BUILTIN)
        shipped = {
            file.name.removesuffix(".yaml"): file
            for file in resources.files("fedethos.data").joinpath("terms").iterdir()
            if file.name.endswith(".yaml")
        }
        if name in shipped:
            return shipped[name].read_text("utf-8")
        known = ", ".join(BUILTIN + one for one in sorted(shipped))
        raise FedethosError("DATA-170", "There is no builtin list of identity terms with this name.", where=source, fix=f"Known: {known}.")
    try:
        return (base / Path(source).expanduser()).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise FedethosError(
            "DATA-170", "The list of identity terms cannot be read.", where=source, fix="Name a YAML file in UTF-8, or builtin:sex."
        ) from None


def _check_set(terms: Sequence[object]) -> None:
    texts = [term for term in terms if isinstance(term, str)]
    if len(texts) < max(2, len(terms)) or len({_key(text) for text in texts}) < len(texts):
        raise _refused("a set needs two or more different terms, all of them text")
    if not all(re.fullmatch(r"\w(?:.*\w)?", _key(text)) for text in texts):
        raise _refused("a term is empty, or begins or ends with something else than a letter, digit or underscore")


def _key(term: str) -> str:
    return " ".join(term.casefold().split())


def _before_a_word(match: re.Match[str]) -> bool:
    word = _WORD_FOLLOWS.match(match.string, match.end())
    return word is not None and word[1].lower() not in _FUNCTION_WORDS


def _in_case_of(found: str, term: str) -> str:
    """``term`` in lower case, UPPER CASE, Title Case or Sentence case, as ``found`` is; in any other mixture as the list has it."""
    if found.islower():
        return term.lower()
    if found.isupper() and len(found) > 1:
        return term.upper()
    words, new = found.split(), term.split()
    if len(words) > 1 and all(word[0].isupper() and word[1:] == word[1:].lower() for word in words):
        return " ".join(word[0].upper() + word[1:].lower() for word in new)
    if found[0].isupper() and found[1:] == found[1:].lower():
        return term[0].upper() + term[1:].lower()
    return term


def _refused(problem: str) -> FedethosError:
    return FedethosError(
        "DATA-171",
        f"The list of identity terms does not fit: {problem}.",
        where="fairness.identity_terms",
        fix="Write {attribute: [[term, counterpart], …]}; see docs/flips.md.",
    )
