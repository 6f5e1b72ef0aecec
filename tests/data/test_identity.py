"""Identity terms: what is swapped, in which case, and that swapping twice gives the text back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedethos.data.identity import Swapper, read_identity_terms
from fedethos.errors import FedethosError

HERE = Path(__file__).parent
SEX = read_identity_terms("builtin:sex", base=HERE)["sex"]


@pytest.mark.parametrize(
    ("text", "counterfactual"),
    [
        ("He told the woman that Mr Smith left.", "She told the man that Ms Smith left."),
        ("she saw her", "he saw him"),
        ("she saw her and left", "he saw him and left"),
        ("her dog, her own idea; HER", "his dog, his own idea; HIM"),
        ("The dog is his.", "The dog is hers."),
        ("The dog is hers, not his dog", "The dog is his, not her dog"),
        ("I saw him", "I saw her"),
        ("MEN and Women, HE/SHE, she's", "WOMEN and Men, SHE/HE, he's"),
        ("Married-civ-spouse, Husband", "Married-civ-spouse, Wife"),
        ("Mr. and Mrs. Ménage", "Mrs. and Mr. Ménage"),
        ("her 3 dogs", "him 3 dogs"),  # a number is not a word: the rule is simple and misses this
        (
            "The theme: sheer shell, human, mankind, Herman, hisself, he_man",
            "The theme: sheer shell, human, mankind, Herman, hisself, he_man",
        ),
        ("wıfe", "wıfe"),  # a dotless i equals i without regard to case, but it is another word
        ("", ""),
    ],
)
def test_the_builtin_list(text: str, counterfactual: str) -> None:
    assert SEX(text) == counterfactual


def test_gender_has_the_same_terms() -> None:
    both = read_identity_terms("builtin:sex", base=HERE)
    assert set(both) == {"sex", "gender"}
    assert both["gender"]("her husband") == "his wife"


def test_terms_of_several_words_and_sets_of_three_go_round() -> None:
    swap = Swapper([["African American", "European American", "Asian American"], ["black", "white", "asian"]])
    text = "an African American man, AFRICAN  AMERICAN, african american, african American; Black"
    once = "an European American man, EUROPEAN AMERICAN, european american, European American; White"
    assert swap(text) == once
    assert swap(swap(swap(once))) == once


def test_the_longest_term_wins_and_all_are_swapped_at_once() -> None:
    swap = Swapper([["man", "woman"], ["old man", "old lady"]])
    assert swap("the old man and the man, the woman") == "the old lady and the woman, the man"


WORDS = ["he", "she", "father", "mother", "men", "women", "young man", "young woman", "the", "nobody", "x1", "wifely"]
STYLES = [str.lower, str.upper, str.title, str.capitalize]
PAIRS = Swapper([["she", "he"], ["father", "mother"], ["men", "women"], ["young man", "young woman"]])


@given(
    st.lists(
        st.one_of(
            st.builds(lambda word, style: style(word), st.sampled_from(WORDS), st.sampled_from(STYLES)),
            st.text("her SHE.,-'\n3é", max_size=3).filter(lambda text: text == text.lower() or text == text.upper()),
        ),
        max_size=12,
    ),
    st.sampled_from([" ", ", ", "-", ".\n"]),
)
def test_swapping_twice_gives_the_text_back(words: list[str], between: str) -> None:
    text = between.join(words)
    assert PAIRS(PAIRS(text)) == text


@given(
    st.sampled_from(["He saw the dog of the woman, {}", "Her dog {} his", "{} is hers.", "{}: HER wife loves him"]),
    st.sampled_from(["Ann", "", "x"]),
)
def test_the_builtin_list_gives_sentences_back(sentence: str, name: str) -> None:
    text = sentence.format(name)
    assert SEX(text) != text
    assert SEX(SEX(text)) == text


@given(st.text())
def test_any_text_can_be_swapped(text: str) -> None:
    assert SEX(text + " husband").endswith("wife")


def refusal(source: str | dict[str, list[list[str]]], base: Path = HERE) -> FedethosError:
    with pytest.raises(FedethosError) as error:
        read_identity_terms(source, base=base)
    return error.value


@pytest.mark.parametrize(
    "content",
    [
        "[[he, she]]",
        "sex: [he, she]",
        "sex: {he: she}",
        "sex: []",
        "sex: [[he]]",
        "sex: [[he, He]]",
        "sex: [[he, 3]]",
        "sex: [[he, '']]",
        "sex: [[he, 'she.']]",
        "sex: [[he, she], [he, it], [he, they]]",
        "sex: [[he, she]",
        "",
    ],
)
def test_a_list_of_another_form_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "terms.yaml").write_text(content)
    assert refusal("terms.yaml", tmp_path).code == "DATA-171"


def test_a_list_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"sex: [[\xe9l, elle]]")
    for source in ("builtin:planets", "missing.yaml", "latin.yaml"):
        assert refusal(source, tmp_path).code == "DATA-170"


def test_a_file_and_the_mapping_itself_give_the_same(tmp_path: Path) -> None:
    (tmp_path / "terms.yaml").write_text("race: [[black, white]]")
    mapping = {"race": [["black", "white"]]}
    for source in ("terms.yaml", mapping):
        assert read_identity_terms(source, base=tmp_path)["race"]("Black") == "White"
    assert read_identity_terms(None, base=tmp_path) == {}
