"""Tabular models: what they compute, where they start, and that a saved one says the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fedethos.data.features import encode_features
from fedethos.errors import FedethosError
from fedethos.job_data import Numeric
from fedethos.models.tabular import Architecture, load_tabular, make_tabular, save_tabular

FEATURES = {"age": Numeric(low=0, high=100), "sex": ["F", "M"]}
LABELS = ["no", "yes"]


def architecture(*hidden: int) -> Architecture:
    return Architecture(features=FEATURES, hidden=list(hidden), labels=LABELS)


def test_the_linear_model_starts_at_zero_and_is_softmax_regression() -> None:
    model = make_tabular(architecture(), seed=1)
    inputs = torch.tensor([[0.3, 0.0, 1.0, 0.0, 0.0], [0.9, 0.0, 0.0, 1.0, 0.0]])
    assert not model(features=inputs).any()
    weight, bias = model.parameters()
    with torch.no_grad():
        weight.copy_(torch.arange(10.0).reshape(2, 5))
        bias.copy_(torch.tensor([1.0, -1.0]))
    np.testing.assert_allclose(model(features=inputs).detach(), [[3.0, 1.5 + 7.0 - 1.0], [4.0, 4.5 + 8.0 - 1.0]], atol=1e-5)


def test_the_mlp_has_tanh_layers_drawn_from_the_seed_alone() -> None:
    one, same, other = (make_tabular(architecture(4, 3), seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(99)
    first = [parameter.detach().double().numpy() for parameter in one.parameters()]
    assert all((a == b).all() for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not any((a == b).all() for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert [array.shape for array in first] == [(4, 5), (4,), (3, 4), (3,), (2, 3), (2,)]
    x = np.array([[0.2, 0.0, 1.0, 0.0, 0.0]])
    hidden = np.tanh(np.tanh(x @ first[0].T + first[1]) @ first[2].T + first[3])
    np.testing.assert_allclose(one(features=torch.tensor(x).float()).detach(), hidden @ first[4].T + first[5], atol=1e-6)


def test_drawing_a_model_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    make_tabular(architecture(4), seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_a_saved_model_scores_a_table_without_its_job(tmp_path: Path) -> None:
    model = make_tabular(architecture(4), seed=3)
    save_tabular(tmp_path, model)
    loaded = load_tabular(tmp_path)
    assert loaded.architecture == model.architecture
    inputs = torch.from_numpy(encode_features({"age": ["41", None], "sex": ["M", None]}, loaded.architecture.features))
    assert torch.equal(loaded(features=inputs), model(features=inputs))


def test_the_hash_names_everything_but_the_numbers() -> None:
    same = Architecture(features=dict(reversed(FEATURES.items())), hidden=[4], labels=LABELS)
    assert same.sha256 == architecture(4).sha256
    others = [
        architecture(5),
        architecture(),
        Architecture(features=FEATURES, hidden=[4], labels=LABELS[::-1]),
        Architecture(features={**FEATURES, "sex": ["M", "F"]}, hidden=[4], labels=LABELS),
        Architecture(features={**FEATURES, "age": Numeric(low=0, high=99)}, hidden=[4], labels=LABELS),
    ]
    assert len({one.sha256 for one in (same, *others)}) == len(others) + 1


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(FedethosError) as error:
            load_tabular(tmp_path)
        return error.value.code

    assert refused() == "MODEL-470"
    model = make_tabular(architecture(), seed=3)
    save_tabular(tmp_path, model)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden": [7]}))
    assert refused() == "MODEL-471"
    (tmp_path / "config.json").write_text(json.dumps({**config, "activation": "relu"}))
    assert refused() == "MODEL-470"
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert refused() == "MODEL-470"
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    save_tabular(tmp_path, model)
    assert refused() == "MODEL-471"
