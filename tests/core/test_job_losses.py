"""Ethics loss and sampling in a job: what they need, what fights, and what would do nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedethos.documents import load_job
from fedethos.errors import FedethosError

SHARES = {"Female": {"<=50K": 0.3, ">50K": 0.03}, "Male": {"<=50K": 0.46, ">50K": 0.21}}
BALANCED = {"sampling": "group_balanced"}


@pytest.mark.parametrize(
    ("fairness", "training", "code"),
    [
        ({"loss": "adversarial"}, {}, "CFG-204"),
        ({"loss": "reweighing", "strategy": "controller"}, {}, "CFG-350"),
        ({"loss": "group_dro", "strategy": "controller"}, {}, "CFG-350"),
        ({"loss": "reweighing", "cell_weights": {"Female": {">50K": 2.0}}}, {}, "CFG-350"),
        ({"loss": "counterfactual_consistency"}, {}, "CFG-351"),
        ({"focal_gamma": 1.0}, {}, "CFG-352"),
        ({"loss": "focal", "consistency_weight": 2.0}, {}, "CFG-352"),
        ({"loss": "group_dro", "training_shares": SHARES}, {}, "CFG-352"),
        ({"loss": "reweighing", "training_shares": {"Female": SHARES["Female"]}}, {}, "CFG-353"),
        ({"loss": "reweighing", "training_shares": {**SHARES, "Other": {"<=50K": 0.01, ">50K": 0.01}}}, {}, "CFG-353"),
        ({"loss": "reweighing", "training_shares": {**SHARES, "Female": {">50K": 0.33}}}, {}, "CFG-353"),
        ({"loss": "reweighing", "training_shares": {**SHARES, "Female": {"<=50K": 0.3, ">50K": 0.3}}}, {}, "CFG-353"),
        ({}, BALANCED, "CFG-354"),
        ({"loss": "reweighing", "training_shares": SHARES}, BALANCED, "CFG-355"),
        ({"loss": "reweighing", "every": 1}, {}, "CFG-342"),
        ({"loss": "group_dro", "every": 3}, {}, "CFG-343"),
    ],
)
def test_what_does_not_go_together_is_refused(
    write_job: Callable[..., Path], fairness: dict[str, object], training: dict[str, object], code: str
) -> None:
    with pytest.raises(FedethosError) as error:
        load_job(write_job(fairness=fairness, training=training))
    assert error.value.code == code


@pytest.mark.parametrize("fairness", [{"loss": "reweighing"}, {"loss": "group_dro"}])
def test_groups_need_a_sensitive_attribute(write_job: Callable[..., Path], fairness: dict[str, object]) -> None:
    simulation = {"partition": {"kind": "iid"}}
    with pytest.raises(FedethosError, match="CFG-311"):
        load_job(write_job(fairness=fairness, data={"sensitive": {}}, simulation=simulation))
    with pytest.raises(FedethosError, match="CFG-311"):
        load_job(write_job(fairness={"training_shares": SHARES}, training=BALANCED, data={"sensitive": {}}, simulation=simulation))


def test_group_dro_goes_with_group_balanced_sampling_as_in_its_paper(write_job: Callable[..., Path]) -> None:
    job = load_job(write_job(fairness={"loss": "group_dro", "every": 1, "training_shares": SHARES}, training=BALANCED))
    assert job.weighs_cells
    assert list(job.steering_rounds) == [1, 2]


def test_reweighing_asks_for_counts_once_or_not_at_all(write_job: Callable[..., Path]) -> None:
    assert list(load_job(write_job(fairness={"loss": "reweighing"})).steering_rounds) == [0]
    assert not load_job(write_job(fairness={"loss": "reweighing", "training_shares": SHARES})).steering_rounds


@pytest.mark.parametrize("loss", ["reweighing", "group_dro"])
def test_counts_of_more_than_two_labels_steer_nothing(write_job: Callable[..., Path], loss: str) -> None:
    label = {"column": "race", "values": ["White", "Black", "Other"], "favorable": "White"}
    with pytest.raises(FedethosError, match="CFG-364"):
        load_job(write_job(data={"label": label}, fairness={"loss": loss, "thresholds": "fixed"}))


def test_shares_may_be_those_of_an_intersection(write_job: Callable[..., Path]) -> None:
    data = {"sensitive": {"sex": ["Female", "Male"], "race": ["White", "Black"]}}
    fairness = {"loss": "reweighing", "intersections": [["sex", "race"]], "attribute": "sex*race"}
    groups = load_job(write_job(data=data, fairness=fairness)).attributes["sex*race"]
    shares = {group: {"<=50K": 0.2, ">50K": 0.05} for group in groups}
    load_job(write_job(data=data, fairness={**fairness, "training_shares": shares}))
    with pytest.raises(FedethosError, match="CFG-353"):
        load_job(write_job(data=data, fairness={**fairness, "training_shares": {**SHARES}}))
