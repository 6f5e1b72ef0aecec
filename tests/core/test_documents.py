"""Documents: what is read, what is refused and in which words. No refusal may repeat a value of the document."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fedethos import yamltext
from fedethos.documents import MAX_BYTES, dump_job, load_job
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.schemas import explain, schema

ADULT = Path(__file__).parents[2] / "simulations" / "jobs" / "adult.yaml"
CANARY = "CANARY7391"

MINIMAL = """\
schema: fedethos/job/v1
name: small
model: {path: "asset:minilm"}
data:
  path: "builtin:adult"
  text: "{age} years old"
  label: {column: income, values: ["<=50K", ">50K"], favorable: ">50K"}
  sensitive:
    sex: [Female, Male]
privacy:
  epsilon: 3
"""


@pytest.fixture
def refusal(tmp_path):
    """Load a document that must be refused and return the refusal."""

    def load(text: str | bytes, *overrides: str) -> FedethosError:
        file = tmp_path / "job.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(FedethosError) as caught:
            load_job(file, overrides)
        assert CANARY not in str(caught.value)
        return caught.value

    return load


@pytest.fixture
def job(tmp_path):
    def load(text: str, *overrides: str) -> Job:
        file = tmp_path / "job.yaml"
        file.write_text(text, encoding="utf-8")
        return load_job(file, overrides)

    return load


def test_the_demo_job_loads_with_its_values():
    loaded = load_job(ADULT)
    assert loaded.name == "adult-income"
    assert loaded.training.learning_rate == 5.0e-3
    assert loaded.data.sensitive["sex"] == ["Female", "Male"]


def test_overrides_are_read_as_yaml_and_the_last_one_wins(job):
    loaded = job(MINIMAL, "privacy.epsilon=1", "privacy.epsilon=2.5", "training.learning_rate=1e-5", "data.sensitive.race=[White, Black]")
    assert (loaded.privacy.epsilon, loaded.training.learning_rate) == (2.5, 1e-5)
    assert loaded.data.sensitive == {"sex": ["Female", "Male"], "race": ["White", "Black"]}


def test_an_override_reaches_a_section_that_the_file_leaves_out_or_empty(job):
    assert job(MINIMAL + "training:\n", "training.batch_size=8", "simulation.partition.kind=iid").training.batch_size == 8


@pytest.mark.parametrize(
    ("line", "code", "where", "words"),
    [
        ("  epsilonn: 3", "CFG-201", "job.yaml:12", ["Unknown key `privacy.epsilonn`", "Did you mean `epsilon`?"]),
        ("batch_size: 3", "CFG-201", "job.yaml:12", ["Unknown key `batch_size`", "Did you mean `training.batch_size`?"]),
        (f"  engine: {CANARY}", "CFG-204", "job.yaml:12", ["`privacy.engine`", "opacus"]),
        (f"  delta: {CANARY}", "CFG-203", "job.yaml:12", ["`privacy.delta`", "a number, more than 0.0, less than 0.01"]),
        ("  max_grad_norm: .inf", "CFG-203", "job.yaml:12", ["`privacy.max_grad_norm`"]),
        ("  delta: 0.5", "CFG-204", "job.yaml:12", ["`privacy.delta`", "more than 0.0, less than 0.01"]),
        ("lora: {r: 2.5}", "CFG-203", "job.yaml:12", ["`lora.r`", "a whole number, at least 1, at most 256"]),
        ("lora: {r: 999}", "CFG-204", "job.yaml:12", ["`lora.r`", "at most 256"]),
        ("lora: {r: true}", "CFG-203", "job.yaml:12", ["`lora.r`"]),
        (f"lora: {CANARY}", "CFG-203", "job.yaml:12", ["`lora`", "a section with r, lora_alpha"]),
        ("lora:\n  target_modules: [query, 3]", "CFG-204", "job.yaml:13", ["`lora.target_modules`", "all-linear or a list, each text"]),
        ("federation:\n  sites:\n    bank: {weight: -1}", "CFG-204", "job.yaml:14", ["`federation.sites.*.weight`", "more than 0.0"]),
        ("  mode: null", "CFG-204", "job.yaml:12", ["`privacy.mode`", "one of none, local"]),
    ],
)
def test_a_refusal_names_line_key_and_what_is_allowed(refusal, line, code, where, words):
    error = refusal(MINIMAL + line + "\n")
    assert (error.code, error.where, error.exit_code) == (code, where, 2)
    for word in words:
        assert word in str(error)


WEIGHED = "fairness: {attribute: sex, max_weight: 4.0, cell_weights: {Female: {'>50K': 1.8}}}\n"


@pytest.mark.parametrize(
    ("text", "override", "code"),
    [
        (MINIMAL, "privacy.adaptive.target_unclipped_quantile=0.4", "CFG-240"),
        (MINIMAL + "  clipping: adaptive\n", "privacy.max_grad_norm=20", "CFG-241"),
        (MINIMAL + "  clipping: adaptive\n", "privacy.adaptive={min_clipbound: 2, max_clipbound: 1}", "CFG-242"),
        (MINIMAL, "fairness.attribute=race", "CFG-243"),
        (MINIMAL + WEIGHED, f"fairness.cell_weights={{{CANARY}: {{'>50K': 1.0}}}}", "CFG-244"),
        (MINIMAL + WEIGHED, f"fairness.cell_weights={{Male: {{{CANARY}: 1.0}}}}", "CFG-244"),
        (MINIMAL + WEIGHED.replace("attribute: sex, ", ""), "data.sensitive={}", "CFG-311"),
        (MINIMAL + WEIGHED, "fairness.max_weight=1.5", "CFG-245"),
        (MINIMAL + WEIGHED, "fairness.max_weight=0.5", "CFG-204"),
        (MINIMAL + WEIGHED, "fairness.cell_weights={Male: {'>50K': -1.0}}", "CFG-204"),
        (MINIMAL + WEIGHED, "fairness.cell_weights={Male: {'>50K': .inf}}", "CFG-203"),
        (
            MINIMAL + WEIGHED,
            "fairness.cell_weights={" + ", ".join(f"{name}: {{'<=50K': 0, '>50K': 0}}" for name in ("Female", "Male", "unknown")) + "}",
            "CFG-246",
        ),
    ],
)
def test_clipping_and_weights_that_make_no_sense_are_refused(refusal, text, override, code):
    assert refusal(text, override).code == code


def test_clipping_and_weights_of_a_job_are_read(job):
    loaded = job(MINIMAL + "  clipping: adaptive\n" + WEIGHED, "privacy.adaptive.unclipped_num_std=5")
    assert (loaded.privacy.clipping, loaded.privacy.adaptive.unclipped_num_std) == ("adaptive", 5.0)
    assert loaded.fairness.cell_weights == {"Female": {">50K": 1.8}}


def test_a_missing_key_is_named_with_its_section(refusal):
    error = refusal(MINIMAL.replace("  path:", "  #path:"))
    assert (error.code, error.where) == ("CFG-202", "job.yaml:4")
    assert "Missing key `data.path`" in error.what


def test_text_that_looks_like_a_number_gets_the_hint_to_quote_it(refusal):
    error = refusal(MINIMAL.replace('["<=50K", ">50K"]', "[0, 1]"))
    assert error.code == "CFG-203"
    assert "`data.label.values[0]`" in error.what
    assert "quotes" in error.what


def test_keys_that_the_author_chose_are_not_repeated(refusal):
    error = refusal(MINIMAL + "federation:\n  sites:\n    " + CANARY + ": {weight: true}\n")
    assert error.code == "CFG-203"
    assert refusal(MINIMAL, f"data.map={{sex: {{{CANARY}: 3}}}}").code == "CFG-203"


def test_a_key_that_a_mapping_does_not_take_is_not_repeated(refusal):
    error = refusal(MINIMAL, f"data.text={{{CANARY}: age}}")
    assert (error.code, error.what) == ("CFG-204", "`data.text` is outside what is allowed: text or a section with column or null.")


@pytest.mark.parametrize("key", [f"{CANARY} JANE", "7391", f"é{CANARY}", CANARY * 5])
def test_a_key_that_looks_like_data_is_not_repeated(refusal, key):
    error = refusal(MINIMAL + f"  {key}: 1\n")
    assert error.what == "Unknown key `privacy.*`"
    assert error.where == "job.yaml:12"


def test_the_first_problem_in_the_file_is_told_and_the_others_are_counted(refusal):
    error = refusal(MINIMAL.replace("epsilon: 3", "epsilon: 99\n  delta: 1\n  clip: 1"))
    assert (error.code, error.where) == ("CFG-204", "job.yaml:11")
    assert "(2 more after this one.)" in error.fix


@pytest.mark.parametrize(
    ("override", "code"),
    [
        ("privacy.epsilon=99", "CFG-204"),
        ("fairness.weigth=1", "CFG-201"),
        ("a.b", "CFG-207"),
        ("=1", "CFG-207"),
        ("a..b=1", "CFG-207"),
        (f"privacy.epsilon=[{CANARY}", "CFG-207"),
        (f"data.text.{CANARY}=1", "CFG-207"),
        ("\udcff=1", "CFG-207"),
    ],
)
def test_a_refused_override_is_named_by_its_place_on_the_command_line(refusal, override, code):
    error = refusal(MINIMAL, "training.batch_size=8", override)
    assert (error.code, error.where) == (code, "--set no. 2")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a: 1\na: 2", "job.yaml:2"),  # a duplicate key
        ("a: {b: 1, b: 1}", "job.yaml:1"),
        ("a: &x 1\nb: *x", "job.yaml:2"),
        ("a: !!python/object/apply:os.system [true]", "job.yaml:1"),
        ("a: !!python/object:os.environ {b: 1}", "job.yaml:1"),
        ("a: !secret x", "job.yaml:1"),
        ("a: [1, 2", "job.yaml:1"),
        ("a: 1\n\tb: 2", "job.yaml:2"),
        ("--- 1\n--- 2", "job.yaml:2"),
        ("? [a]\n: 1", "job.yaml:1"),
        ("a: 1e999", "job.yaml:1"),
        ("a: " + "9" * 5000, "job.yaml:1"),
        ("[" * 5000, "job.yaml:1"),
        ('a: "\\ud800"', "job.yaml:1"),
        ('a: "\\UFFFFFFFF"', "job.yaml"),
        (b"a: 1\nb: \xff", "job.yaml:2"),
        (b"a: \x00", "job.yaml"),
        (b"#" * (MAX_BYTES + 1), "job.yaml"),
    ],
)
def test_what_is_not_plain_yaml_is_refused_with_its_line(refusal, text, where):
    error = refusal(text)
    assert (error.code, error.where) == ("CFG-205", where)


@pytest.mark.parametrize("text", ["", "- a", "just text", "3"])
def test_a_document_that_is_no_mapping_is_refused(refusal, text):
    assert refusal(text).code == "CFG-203"


@pytest.mark.parametrize("name", ["missing.yaml", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(FedethosError, match="CFG-206"):
        load_job(tmp_path / name)


def test_a_code_of_the_model_passes_through_with_its_line(refusal):
    error = refusal(MINIMAL + "  unit: person\n")
    assert (error.code, error.exit_code) == ("DATA-118", 3)
    assert refusal(MINIMAL.replace('favorable: ">50K"', f"favorable: {CANARY}")).where == "job.yaml:7"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-5", 1e-5), ("2.0e-3", 2e-3), (".5", 0.5), ("1e3", 1000.0), ("0017", 17), ("0o17", 15), ("0x1F", 31), ("-3", -3)]
    + [("true", True), ("~", None), ("null", None), ("", None), ("'1'", "1"), ("!!str 1", "1")]
    + [(plain, plain) for plain in ("no", "On", "2024-01-31", "12:30:45", "1_000", "NaN", ".inf", "0b1", "=", "<<")],
)
def test_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    parsed = yamltext.parse(text).data
    assert parsed == value
    assert type(parsed) is type(value)


def test_keys_are_text_as_written():
    assert yamltext.parse("{1.0: Male, no: x, ~: y}").data == {"1.0": "Male", "no": "x", "~": "y"}


texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), max_size=12)
plain_texts = texts | st.sampled_from(["1e-5", "no", "1_0", "0o7", "2024-01-01", "~", "", "<<", "- a", "a: b", "# c", "\ttab", "l1\nl2 "])
plain_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | plain_texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_texts, inner, max_size=4),
    max_leaves=20,
)


@given(plain_data)
def test_what_is_written_reads_back_the_same_here_and_in_yaml_1_1(data):
    text = yamltext.render(data)
    assert yamltext.parse(text).data == data
    assert yaml.safe_load(text) == data


@settings(max_examples=30)
@given(
    text=plain_texts,
    column=plain_texts,
    sites=st.dictionaries(plain_texts, st.fixed_dictionaries({"weight": st.floats(min_value=1e-300, max_value=1e300)}), max_size=3),
    rate=st.floats(min_value=1e-30, max_value=1e30),
    map_=st.dictionaries(plain_texts, st.dictionaries(plain_texts, plain_texts, max_size=2), max_size=2),
)
def test_a_dumped_job_has_the_same_hash(tmp_path_factory, text, column, sites, rate, map_):
    document = yamltext.parse(MINIMAL).data
    document["data"] |= {"text": text, "person_id": column, "map": map_}
    document |= {"federation": {"sites": sites}, "training": {"learning_rate": rate}}
    original = Job.model_validate(document)
    file = tmp_path_factory.mktemp("dump") / "job.yaml"
    file.write_text(dump_job(original), encoding="utf-8")
    assert load_job(file).sha256 == original.sha256


def _places(data, path=()):
    """Every place of a document, as a path."""
    yield path
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, child in children:
        yield from _places(child, (*path, key))


FULL = yamltext.parse(dump_job(load_job(ADULT))).data
canaries = st.sampled_from([CANARY, 739100739100, 7.391007391e-5, [CANARY], {"inner": CANARY}, [[CANARY, 739100739100]], 10**400])
anything = canaries | st.recursive(
    st.none() | st.booleans() | canaries,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["path", "column", "weight", "kind", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(list(_places(FULL))), anything, st.sampled_from(["set", "drop", "add"])), min_size=1, max_size=3
    ),
    overrides=st.lists(
        st.tuples(st.sampled_from([".".join(map(str, path)) for path in _places(FULL)]), anything.map(yamltext.render)), max_size=2
    ),
)
def test_a_mutated_job_is_read_or_refused_and_no_value_is_told(tmp_path_factory, changes, overrides):
    document = FULL
    for path, value, kind in changes:
        document = _changed(document, path, value, kind)
    file = tmp_path_factory.mktemp("mutated") / "job.yaml"
    file.write_text(yamltext.render(document), encoding="utf-8")
    try:
        load_job(file, [f"{key}={value}" for key, value in overrides])
    except FedethosError as error:
        for secret in (CANARY, "739100", "7.391", "9.999"):
            assert secret not in str(error)


def _changed(data, path, value, kind):
    if not path:
        return {**data, "another_key": value} if kind == "add" and isinstance(data, dict) else value
    head, *rest = path
    if isinstance(data, dict) and head in data:
        if not rest and kind == "drop":
            return {key: child for key, child in data.items() if key != head}
        return {**data, head: _changed(data[head], rest, value, kind)}
    if isinstance(data, list) and head in range(len(data)):
        return [*data[:head], _changed(data[head], rest, value, kind), *data[head + 1 :]]
    return data


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=60)
    | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1"))
    | st.text("{}[]:,-?&*!|>'\"#%@`\n \\uU0aé~.=<", max_size=40)
)
def test_any_text_is_parsed_or_refused(text):
    try:
        yamltext.parse(text)
    except yamltext.NotYamlError as problem:
        assert problem.line is None or 1 <= problem.line <= len(text.splitlines()) + 1


def test_explain_tells_type_range_default_and_meaning():
    page = explain(Job, "privacy.epsilon")
    for part in ("a number, more than 0.0, at most 50.0 or null", "8.0", "Per site, over the whole job"):
        assert part in page
    assert "privacy.epsilon" in explain(Job, "privacy")
    assert "federation.early_stop.patience" in explain(Job)


def test_every_key_of_the_demo_job_can_be_explained():
    for path in _places(FULL):
        if path and path[:2] not in {("data", "map"), ("federation", "sites")}:
            assert explain(Job, ".".join(map(str, path[:2])))


@pytest.mark.parametrize("key", ["fairness.treshold", "nope", "privacy.epsilon.x", "."])
def test_an_unknown_key_cannot_be_explained(key):
    with pytest.raises(FedethosError, match="CFG-201"):
        explain(Job, key)


def test_the_schema_accepts_what_it_describes():
    tree = schema(Job)
    assert tree["additionalProperties"] is False
    assert set(tree["properties"]) == set(FULL)
