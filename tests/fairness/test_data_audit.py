"""The data audit finds what was planted, and nothing where nothing was planted."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fedethos.data.contract import apply_contract
from fedethos.fairness.data_audit.audit import DataAudit, audit_data
from fedethos.fairness.data_audit.duplicates import find_duplicates
from fedethos.fairness.data_audit.findings import findings
from fedethos.fairness.data_audit.label_noise import contradicted, label_noise
from fedethos.fairness.data_audit.personal_data import personal_data
from fedethos.fairness.data_audit.predictors import folds_of, sample_rows
from fedethos.fairness.data_audit.proxies import find_proxies, level_shares
from fedethos.fairness.data_audit.rates import clustered_rates, compare_rates
from fedethos.fairness.data_audit.table import AuditTable, audit_table
from fedethos.fairness.data_audit.words import PRIOR, log_odds, typical_words
from fedethos.job_data import Data


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def read(frame: pd.DataFrame, *, split: np.ndarray | None = None, **data: object) -> AuditTable:
    """A table of text read through the real contract; every third row is a test row unless ``split`` says otherwise."""
    contract = Data.model_validate(
        {
            "path": "x.csv",
            "label": {"column": "outcome", "values": ["no", "yes"], "favorable": "yes"},
            "sensitive": {"sex": ["f", "m"]},
            **data,
        }
    )
    cells = frame.astype(object).where(frame.notna(), None)
    place = np.where(np.arange(len(frame)) % 3 == 2, 2, 0) if split is None else split
    return audit_table(cells, contract, apply_contract(cells, contract), place)


def measure(table: AuditTable, **reference: dict[str, float]) -> DataAudit:
    return audit_data(table, reference=reference, min_people=11, rng=rng())


def planted(rows: int = 1500) -> pd.DataFrame:
    """``code`` follows sex in 9 of 10 rows, ``color`` in 6 of 10, ``noise`` not at all; ``fixed`` is constant."""
    draw = rng()
    sex = draw.choice(["f", "m"], rows)

    def follows(share: float) -> np.ndarray:
        return np.where(draw.random(rows) < share, sex, np.where(sex == "f", "m", "f"))

    return pd.DataFrame(
        {
            "sex": sex,
            "outcome": draw.choice(["no", "yes"], rows),
            "noise": draw.choice(list("abcde"), rows),
            "color": np.char.add("c-", follows(0.6)),
            "code": np.char.add("k-", follows(0.9)),
            "fixed": "same",
        }
    )


COLUMNS = "{noise} {color} {code} {fixed}"


def test_a_planted_proxy_comes_first_and_noise_is_not_accused() -> None:
    audit = measure(read(planted(), text=COLUMNS))
    proxies = audit.attributes["sex"].proxies
    assert proxies is not None and not proxies.reads_itself
    assert [proxy.column for proxy in proxies.columns] == ["code", "color", "noise"]  # the constant one cannot tell anything
    code, color, noise = proxies.columns
    assert (code.auc, color.auc, noise.auc) == pytest.approx((0.9, 0.6, 0.5), abs=0.04)
    assert audit.constant == ("fixed",)
    about_sex = [finding.sentence for finding in findings(audit) if finding.about == "sex"]
    assert any("sex can be guessed from code (AUC 0." in sentence and "noise" not in sentence for sentence in about_sex)


def test_explained_entropy_is_theils_u_by_hand() -> None:
    """40 rows: of code x 15 f and 5 m, of code y 5 f and 15 m. H(G) = ln 2; I = ln 2 - H(3/4)."""
    frame = pd.DataFrame({"sex": ["f"] * 15 + ["m"] * 5 + ["f"] * 5 + ["m"] * 15, "code": ["x"] * 20 + ["y"] * 20, "outcome": "yes"})
    proxies = find_proxies(read(frame, text="{code}"), "sex", min_people=11, rng=rng())
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert proxies is not None and proxies.columns[0].explained == pytest.approx((math.log(2) - entropy) / math.log(2))


def test_level_shares_rank_as_a_logistic_regression_on_the_levels() -> None:
    draw = rng()
    codes = draw.integers(0, 6, 900)
    target = (draw.random(900) < np.array([0.1, 0.8, 0.3, 0.5, 0.65, 0.2])[codes]).astype(np.int64)
    fold = folds_of(np.arange(900), rng())
    shares = level_shares(codes, target, fold, 2)[:, 1]
    one_hot, fitted = np.eye(6)[codes], np.zeros(900)
    for number in range(5):
        model = LogisticRegression(C=1e6, max_iter=1000).fit(one_hot[fold != number], target[fold != number])
        fitted[fold == number] = model.predict_proba(one_hot[fold == number])[:, 1]
    assert np.abs(shares - fitted).max() < 0.02
    assert roc_auc_score(target, shares) == pytest.approx(roc_auc_score(target, fitted), abs=0.005)


def test_a_model_that_reads_the_attribute_is_told_so_and_it_is_no_proxy_of_itself() -> None:
    proxies = find_proxies(read(planted(300), text="{sex} {noise}"), "sex", min_people=11, rng=rng())
    assert proxies is not None and proxies.reads_itself
    assert [proxy.column for proxy in proxies.columns] == ["noise"] and (proxies.together or 0.0) < 0.6


def test_tabular_features_are_audited_too() -> None:
    draw = rng()
    sex = draw.choice(["f", "m"], 800)
    height = np.where(sex == "f", 165.0, 178.0) + draw.normal(0.0, 7.0, 800)
    frame = pd.DataFrame({"sex": sex, "height": height.round(3).astype(str), "kind": draw.choice(["a", "b"], 800), "outcome": "yes"})
    table = read(frame, features={"height": {"low": 100, "high": 220}, "kind": ["a", "b"]})
    proxies = find_proxies(table, "sex", min_people=11, rng=rng())
    truth = stats.norm.cdf(13.0 / (7.0 * math.sqrt(2.0)))  # AUC of two normals 13 apart
    assert proxies is not None and proxies.columns[0].column == "height"
    assert proxies.columns[0].auc == pytest.approx(truth, abs=0.03)
    assert typical_words(table, "sex", min_people=11) == () and personal_data(table) == ()


def test_log_odds_by_the_formula_of_monroe_et_al() -> None:
    inside, outside = np.array([30.0, 70.0]), np.array([10.0, 90.0])
    difference, z = log_odds(inside, outside)
    a, n = PRIOR * 40.0 / 200.0, 100.0 + PRIOR
    by_hand = math.log((30 + a) / (n - 30 - a)) - math.log((10 + a) / (n - 10 - a))
    assert difference[0] == pytest.approx(by_hand)
    assert z[0] == pytest.approx(by_hand / math.sqrt(1 / (30 + a) + 1 / (10 + a)))


def notes(rows: int = 800) -> pd.DataFrame:
    """Free text; women's notes say "midwife" in half of all cases. One man of two hundred rows says "ranger" in every one of them."""
    draw = rng()
    sex = draw.choice(["f", "m"], rows)
    vocabulary = np.array([f"word{number}" for number in range(60)])
    texts = [" ".join(draw.choice(vocabulary, 12)) + (" midwife" if s == "f" and draw.random() < 0.5 else "") for s in sex]
    talkative = pd.DataFrame({"id": "talker", "sex": "m", "note": "ranger " + vocabulary[0], "outcome": "no"}, index=range(200))
    many = pd.DataFrame({"id": [f"p{row}" for row in range(rows)], "sex": sex, "note": texts, "outcome": draw.choice(["no", "yes"], rows)})
    return pd.concat([many, talkative], ignore_index=True)


def test_a_planted_word_comes_first_and_one_talkative_person_decides_nothing() -> None:
    table = read(notes(), text={"column": "note"}, person_id="id")
    words = typical_words(table, "sex", min_people=11)
    assert [(word.word, word.group) for word in words] == [("midwife", "f")]
    assert words[0].share == pytest.approx(0.5, abs=0.06) and words[0].rest == 0.0
    alone = read(notes(), text={"column": "note"})  # nothing names the person: two hundred rows are two hundred people
    assert "ranger" in [word.word for word in typical_words(alone, "sex", min_people=11)]


def test_a_rare_word_is_never_shown() -> None:
    frame = notes().iloc[:800].copy()
    women = np.flatnonzero(frame["sex"] == "f")
    frame.iloc[women[:40], frame.columns.get_loc("note")] = "zyzzyva"
    table = read(frame, text={"column": "note"}, person_id="id")
    assert "zyzzyva" in {word.word for word in typical_words(table, "sex", min_people=40)}
    assert "zyzzyva" not in {word.word for word in typical_words(table, "sex", min_people=41)}


def test_the_audit_shows_no_word_of_ten_people_whatever_the_job_says() -> None:
    frame = pd.DataFrame({"sex": ["f"] * 10 + ["m"] * 1000, "note": ["zyzzyva"] * 10 + ["word"] * 1000, "outcome": "no"})
    table = read(frame, text={"column": "note"})
    assert "zyzzyva" in {word.word for word in typical_words(table, "sex", min_people=2)}
    assert "zyzzyva" not in repr(audit_data(table, reference={}, min_people=2, rng=rng()))


def test_base_rates_have_wilsons_interval_and_pearsons_p_value() -> None:
    frame = pd.DataFrame({"sex": ["f"] * 100 + ["m"] * 200, "outcome": ["yes"] * 20 + ["no"] * 80 + ["yes"] * 100 + ["no"] * 100, "x": "a"})
    table = read(frame, text="{x}")
    rates = compare_rates(table.favored, table, "sex", min_people=11)
    women = rates.groups[0].rate
    p, n, z = 0.2, 100, stats.norm.ppf(0.975)
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (women.value, women.low, women.high) == pytest.approx((0.2, middle - half, middle + half))
    assert rates.difference.value == pytest.approx(0.3) and rates.ratio.value == pytest.approx(0.4)
    assert rates.p_value == pytest.approx(stats.chi2_contingency([[20, 80], [100, 100]], correction=False)[1])
    assert rates.groups[-1].group == "unknown" and rates.groups[-1].rate.value is None
    assert any("four fifths" in finding.sentence for finding in findings(measure(table)))


def test_many_rows_of_a_person_do_not_make_an_interval_narrower() -> None:
    """Every person's ten rows are alike: 40 people are 40 trials, not 400."""
    hit = np.repeat(np.arange(40) < 10, 10)
    people = np.repeat(np.arange(40), 10)
    zeros = np.zeros(400, dtype=np.int64)
    assert clustered_rates(hit, zeros, people, 1).trials == pytest.approx(40.0)
    assert clustered_rates(hit, zeros, np.arange(400), 1).trials == pytest.approx(400.0)


def test_people_and_rows_are_counted_apart_and_held_against_a_reference() -> None:
    frame = pd.DataFrame({"id": ["a", "a", "a", *[f"p{n}" for n in range(97)]], "sex": [None] * 3 + ["f"] * 20 + ["m"] * 77})
    frame["outcome"], frame["x"] = ["yes", "no", "no", *["no"] * 97], "a"
    audit = measure(read(frame, text="{x}", person_id="id"), sex={"f": 0.5, "m": 0.5})
    women, men, unknown = audit.attributes["sex"].groups
    assert (women.people, men.people, unknown.people, unknown.rows) == (20, 77, 1, 3)
    assert unknown.by_label == (1, 1) and unknown.rows_by_label == (2, 1)
    assert women.share.value == pytest.approx(20 / 97) and women.representation.value == pytest.approx(2 * 20 / 97)
    assert audit.people == 98 and audit.most_rows_of_a_person == 3
    sentences = " ".join(finding.sentence for finding in findings(audit))
    assert "f is under-represented" in sentences and "m is under-represented" not in sentences
    assert "No row of sex f has the label yes" in sentences and "sex unknown is too small" in sentences


def test_planted_copies_across_splits_are_found_and_hard() -> None:
    frame = planted(300)
    frame["id"], frame["note"] = [f"p{row}" for row in range(300)], [f"entry {row} of the {c}" for row, c in enumerate(frame["noise"])]
    split = np.repeat([0, 1, 2], 100)
    clean = find_duplicates(read(frame, text=COLUMNS, person_id="id", split=split), rng=rng())
    assert clean.leaked == 0 and clean.inputs.across > 100  # few columns: alike people are no copies
    for source, copy in ((3, 120), (4, 250), (5, 251), (6, 7)):
        frame.loc[copy, frame.columns != "id"] = frame.loc[source, frame.columns != "id"]
    table = read(frame, text=COLUMNS, person_id="id", split=split)
    found = find_duplicates(table, rng=rng())
    assert (found.leaked, found.records.across, found.records.within) == (3, 3, (1, 0, 0))
    assert findings(measure(table))[0].severity == "hard"


def test_free_text_copies_and_near_copies_across_splits_are_found() -> None:
    draw = rng()
    vocabulary = ["".join(letters) for letters in draw.choice(list("abcdefghijklmnopqrstuvwxyz"), (500, 6))]
    texts = [" ".join(draw.choice(vocabulary, 30)) for _ in range(300)]
    texts[200], texts[201] = texts[0], "  " + texts[1].upper()
    texts[202] = texts[2].replace(" ", " ", 1) + " amen"
    texts[203] = texts[204] = texts[3][:4]  # short texts agree by chance
    frame = pd.DataFrame({"note": texts, "sex": "f", "outcome": "no"})
    found = find_duplicates(read(frame, text={"column": "note"}, split=np.repeat([0, 2], [200, 100])), rng=rng())
    assert found.texts is not None and found.texts.across == 2 and found.leaked == 2
    assert found.near is not None and (found.near.found, found.near.trained) == (2, 200)  # 201 in capitals, 202 with a word more


def test_flipped_labels_are_hinted_at_in_the_group_where_they_are() -> None:
    """Three columns tell the outcome; a fifth of the women's labels are flipped. The counts follow."""
    draw = rng()
    rows = 3000
    sex, truth = draw.choice(["f", "m"], rows), draw.random(rows) < 0.5
    frame = pd.DataFrame({name: np.where(draw.random(rows) < 0.97, truth, ~truth).astype(str) for name in ("p", "q", "r")})
    flipped = (sex == "f") & (draw.random(rows) < 0.1)
    frame["sex"], frame["outcome"] = sex, np.where(truth ^ flipped, "yes", "no")
    noise = label_noise(read(frame, text="{p} {q} {r}"), rng=rng())
    assert noise is not None
    women, men, _ = noise.by_group["sex"]
    assert women.contradicted > 0.8 * flipped.sum()
    assert men.contradicted < 0.1 * women.contradicted
    assert women.contradicted > 1.5 * women.expected


def test_contradiction_needs_more_than_nine_tenths_for_another_label() -> None:
    probability = np.array([[0.95, 0.05], [0.95, 0.05], [0.85, 0.15], [0.02, 0.98]])
    assert contradicted(probability, np.array([0, 1, 1, 0])).tolist() == [False, True, False, True]


def test_an_age_that_comparisons_sort_into_groups_keeps_its_number_as_the_model_sees_it() -> None:
    frame = pd.DataFrame({"age": [str(20 + row % 50) for row in range(400)], "sex": ["f", "m"] * 200, "outcome": "no"})
    table = read(frame, text="{age}", sensitive={"age": ["young", "old"], "sex": ["f", "m"]}, map={"age": {"<40": "young", ">=40": "old"}})
    assert table.columns[0].levels == 51 and table.columns[0].sensitive  # fifty ages, and missing
    proxies = find_proxies(table, "sex", min_people=11, rng=rng())
    assert proxies is not None and proxies.together is None and proxies.columns[0].auc == 1.0  # even ages are women


def test_missing_values_by_group() -> None:
    frame = planted(400)
    frame.loc[(frame["sex"] == "f") & (np.arange(400) % 2 == 0), "color"] = None
    audit = measure(read(frame, text=COLUMNS))
    (color,) = audit.missing
    women = frame["sex"] == "f"
    rates = color.by_attribute["sex"]
    assert (color.column, color.rows) == ("color", int(frame["color"].isna().sum()))
    assert rates.groups[0].rate.value == pytest.approx(frame.loc[women, "color"].isna().mean())
    assert any("Missing more often in some groups of sex" in finding.sentence for finding in findings(audit))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("write to a.b@example.org now", "e-mail address"),
        ("call (212) 555-0147 today", "phone number"),
        ("call +49 30 901820 today", "phone number"),
        ("number 219-09-9999 on file", "US social security number"),
        ("pay to GB82 WEST 1234 5698 7654 32 please", "IBAN"),
        ("card 4111 1111 1111 1111 was used", "card number"),
        ("number 900-09-9999 and 219-00-9999", None),  # never given out
        ("pay to GB83 WEST 1234 5698 7654 32 please", None),  # check digits
        ("card 4111 1111 1111 1112 was used", None),
        ("capital gain 99999 loss 1902, 40 hours a week, at 12.30 on 2021-03-04", None),
    ],
)
def test_identifiers_are_counted_by_kind_and_never_kept(text: str, kind: str | None) -> None:
    table = read(pd.DataFrame({"note": [text, text, "nothing here"], "id": ["a", "a", "b"], "sex": "f", "outcome": "no"}),
                 text={"column": "note"}, person_id="id")  # fmt: skip
    assert {item.kind: (item.rows, item.people) for item in personal_data(table) if item.rows} == ({kind: (2, 1)} if kind else {})
    assert text not in repr(personal_data(table))


def test_odd_tables_are_audited_too() -> None:
    same = pd.DataFrame({"sex": ["f", None, "m"], "outcome": "no", "x": "a"})
    audit = measure(read(same, text="{x}"))
    assert audit.noise is None and audit.attributes["sex"].proxies is None
    assert audit.attributes["sex"].base_rate.difference.value is None
    absent = pd.DataFrame({"sex": ["f", "m"] * 60, "outcome": ["no", "yes", "no", "no"] * 30, "x": "a"})
    rates = measure(read(absent, text="{x}")).attributes["sex"].base_rate
    assert (rates.ratio.value, rates.ratio.low, rates.difference.value) == (0.0, 0.0, 0.5)
    nobody = measure(read(planted(60), text=COLUMNS, sensitive={}))
    assert nobody.attributes == {} and nobody.noise is not None and nobody.noise.by_group == {}


def test_a_sample_holds_whole_folds_of_people() -> None:
    people = np.repeat(np.arange(50), 4)
    fold = folds_of(people, rng())
    assert all(len(set(fold[people == person])) == 1 for person in range(50))
    rows = sample_rows(people, rng(), limit=40)
    assert len(rows) == 40 and len(set(people[rows])) == 10 and all(a < b for a, b in pairwise(rows))
