"""The plan of a sweep: values split as YAML reads them, one checked job per point and seed, folders that never collide."""

from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedethos.documents import load_job
from fedethos.errors import FedethosError
from fedethos.simulations.sweep import Axis, parse_axis, plan_sweep, point_name, split_values, state_of

JOB = Path(__file__).parents[2] / "simulations" / "jobs" / "adult.yaml"

plain = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters=".-+_"), min_size=1, max_size=8)
flow = st.deferred(
    lambda: (
        plain
        | plain.map(lambda text: f'"{text},]{text}"')
        | st.lists(flow, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(plain, flow, max_size=2).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"
        )
    )
)


def refused(code: str, call, *arguments) -> FedethosError:
    with pytest.raises(FedethosError) as caught:
        call(*arguments)
    assert caught.value.code == code
    return caught.value


@given(st.lists(flow, min_size=1, max_size=5))
def test_values_come_apart_where_they_were_put_together(values: list[str]) -> None:
    assert split_values(",".join(values)) == tuple(values)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("3,8", ("3", "8")),
        ("[query],[query, value]", ("[query]", "[query, value]")),
        ("{kind: iid},{kind: dirichlet, by: sex}", ("{kind: iid}", "{kind: dirichlet, by: sex}")),
        ("it's,plain]", ("it's", "plain]")),
        ("'a,b',c", ("'a,b'", "c")),
        ("null, 1e-5", ("null", "1e-5")),
        ("[1,2", None),
        ("'a,b", None),
    ],
)
def test_commas_inside_brackets_and_quotes_belong_to_the_value(text: str, values: tuple[str, ...] | None) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize("text", ["privacy.epsilon", "privacy.epsilon=", "privacy.epsilon=3,,8", "=3", "privacy.epsilon=[3"])
def test_a_grid_needs_a_key_and_values(text: str) -> None:
    refused("CFG-280", parse_axis, text)


def test_the_seed_is_no_grid_key() -> None:
    refused("CFG-282", parse_axis, "simulation.seed=1,2")


def test_every_point_gets_every_seed_and_the_values_of_set() -> None:
    axes = [Axis("privacy.epsilon", ("3", "8")), Axis("federation.aggregation", ("ffa", "fedavg"))]
    plan = plan_sweep(JOB, ["federation.rounds=2"], axes, range(7, 10))
    assert [point.settings for point in plan.points] == [
        {"privacy.epsilon": epsilon, "federation.aggregation": rule} for epsilon, rule in product(("3", "8"), ("ffa", "fedavg"))
    ]
    assert plan.points[1].runs[2].folder == "epsilon=3,aggregation=fedavg/seed-9"
    alone = load_job(JOB, ["federation.rounds=2", "privacy.epsilon=3", "federation.aggregation=fedavg", "simulation.seed=9"])
    assert plan.points[1].runs[2].job.sha256 == alone.sha256
    order = [run.folder for run in plan.in_order()]
    assert len(set(order)) == 12
    assert [folder.rpartition("-")[2] for folder in order] == ["7"] * 4 + ["8"] * 4 + ["9"] * 4


def test_no_grid_is_one_point() -> None:
    plan = plan_sweep(JOB, [], [], [1, 2])
    assert [run.folder for run in plan.in_order()] == ["job/seed-1", "job/seed-2"]


def test_a_bad_value_is_refused_as_by_set_and_before_anything_runs() -> None:
    unknown = refused("CFG-201", plan_sweep, JOB, ["federation.rounds=2"], [Axis("privacy.epsilonn", ("3",))], [1])
    assert "Did you mean `epsilon`" in str(unknown)
    out_of_range = refused("CFG-204", plan_sweep, JOB, [], [Axis("privacy.epsilon", ("3", "0"))], [1])
    assert out_of_range.where == "--grid privacy.epsilon"
    assert refused("CFG-204", plan_sweep, JOB, ["privacy.epsilon=0"], [], [1]).where == "--set no. 1"


def test_the_same_point_twice_is_refused() -> None:
    refused("CFG-281", plan_sweep, JOB, [], [Axis("privacy.epsilon", ("3", "3.0"))], [1])
    refused("CFG-281", plan_sweep, JOB, [], [Axis("privacy.epsilon", ("3",)), Axis("privacy.epsilon", ("8",))], [1])


def test_names_of_points_say_the_shortest_key_that_tells_them_apart() -> None:
    assert point_name({"privacy.epsilon": "3", "federation.rounds": "5"}) == "epsilon=3,rounds=5"
    assert point_name({"simulation.sites": "3", "federation.sites": "{}"}).startswith("simulation.sites=3,federation.sites=")


@given(st.lists(st.text(min_size=1, max_size=200), min_size=2, max_size=2, unique=True))
def test_names_of_points_are_safe_and_differ(values: list[str]) -> None:
    names = [point_name({"a.text": value}) for value in values]
    assert names[0] != names[1]
    for name in names:
        assert len(name) < 120 and name.isascii() and "/" not in name and not name.startswith(".") and name.isprintable()


def test_a_folder_with_another_job_is_refused(tmp_path: Path) -> None:
    from fedethos.documents import dump_job
    from fedethos.runfolder import RunFolder

    one, other = (plan_sweep(JOB, [f"federation.rounds={rounds}"], [], [1]).points[0].runs[0] for rounds in (2, 3))
    assert state_of(one, tmp_path) == "new"
    with RunFolder(tmp_path / one.folder).create() as folder:
        folder.write_job(dump_job(one.job))
    assert state_of(one, tmp_path) == "begun"
    (tmp_path / one.folder / "result.json").write_text("{}")
    assert state_of(one, tmp_path) == "finished"
    refused("RUN-950", state_of, other, tmp_path)
