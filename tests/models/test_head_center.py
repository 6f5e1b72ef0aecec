"""The centre of the head's input: one formula, folded into any adapter that leaves, and seen by both clipping engines."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fedethos.aggregation import HEAD_CENTER, trained_in
from fedethos.client.model import NodeModel
from fedethos.errors import FedethosError
from fedethos.job import Lora
from fedethos.models.adapter import attach_lora, save_adapter
from fedethos.models.base import load_base
from fedethos.models.head_center import center_head
from fedethos.models.prefix import tail
from fedethos.privacy.fused import FusedEngine
from fedethos.privacy.opacus_engine import OpacusEngine
from fedethos.privacy.self_check import check_engine, synthetic_classification

Build = Callable[[str], torch.nn.Module]
Shake = Callable[[PeftModel], PeftModel]


def node_model(base: torch.nn.Module, shake: Shake, *, cut: bool = False) -> NodeModel:
    adapted = shake(attach_lora(base, Lora(r=4, layers_to_transform=[2, 3]), seed=1, freeze_a=False))
    center = center_head(adapted)
    return NodeModel(adapted, tail(adapted) if cut else adapted, "0" * 64, center=center)


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(3).normal(0, 1, shape).astype(np.float32)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_exported_adapter_gives_the_same_logits_with_plain_peft(minilm: Path, tmp_path: Path, shake: Shake) -> None:
    model = node_model(load_base(minilm, num_labels=2, sha256=None).model, shake)
    assert model.center is not None
    model.load({**model.read(), HEAD_CENTER: drawn((384,))})
    save_adapter(tmp_path, model.model, fold=model.center.folded)
    batch = AutoTokenizer.from_pretrained(minilm)(["a short text", "another text, somewhat longer"], padding=True, return_tensors="pt")
    plain = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(minilm), tmp_path).eval()
    with torch.no_grad():
        ours, theirs = model.logits(dict(batch)), plain(**batch).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ours.abs().max() > 0.1


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_the_head_reads_twice_the_distance_from_the_centre(kind: str, tiny: Build, shake: Shake) -> None:
    """What the first linear layer gets, read by a hook of this test, beside the same model whose centre is elsewhere."""
    model = node_model(tiny(kind), shake)
    assert model.center is not None
    head = model.center._head
    batch = {"input_ids": torch.arange(1, 9)[None], "attention_mask": torch.ones(1, 8, dtype=torch.int64)}
    reads: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: reads.append(inputs[0].detach()))
    for value in (np.zeros(32, np.float32), drawn((32,))):
        model.load({**model.read(), HEAD_CENTER: value})
        with model.center.watched() as seen, torch.no_grad():
            model.logits(batch)
        torch.testing.assert_close(reads.pop(), 2.0 * (seen[0] - torch.from_numpy(value)))


@pytest.mark.parametrize("engine", [FusedEngine, OpacusEngine])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_both_engines_clip_through_it(engine: type, kind: str, tiny: Build, shake: Shake) -> None:
    """The self-check compares them with plain autograd, record by record, on a copy that has the centre too."""
    model = node_model(tiny(kind), shake)
    names = trained_in("ffa", 1, model.exchanged_names)
    assert HEAD_CENTER not in names
    with model.training(names):
        check_engine(partial(engine), model.model, model.parameters, synthetic_classification(99, 2))


def test_a_copy_of_the_model_has_a_centre_of_its_own(tiny: Build, shake: Shake) -> None:
    import copy

    model = node_model(tiny("bert"), shake)
    batch = {"input_ids": torch.arange(1, 9)[None]}
    twin = copy.deepcopy(model.model)
    with torch.no_grad():
        before = twin(**batch).logits
        model.load({**model.read(), HEAD_CENTER: drawn((32,))})
        assert torch.equal(twin(**batch).logits, before)
        assert not torch.allclose(model.model(**batch).logits, before)


def test_it_travels_but_never_trains(tiny: Build, shake: Shake) -> None:
    model = node_model(tiny("bert"), shake)
    assert HEAD_CENTER in model.exchanged_names
    assert HEAD_CENTER not in {*model.parameters, *model.head_names(), *model.frozen_names}
    assert model.base_weights() is not None
    for wrong, code in ((drawn((31,)), "MODEL-455"), (np.full(32, np.nan, np.float32), "MODEL-457")):
        with pytest.raises(FedethosError, match=code):
            model.load({**model.read(), HEAD_CENTER: wrong})


def test_the_start_is_the_same_wherever_it_is_drawn(tiny: Build, shake: Shake) -> None:
    torch.manual_seed(4)
    one = node_model(tiny("bert"), shake)
    torch.manual_seed(5)
    other = node_model(tiny("bert"), shake)
    assert one.center is not None
    assert other.center is not None
    assert np.array_equal(one.read()[HEAD_CENTER], other.read()[HEAD_CENTER])
    assert one.center.bound == other.center.bound > 0


def test_folding_is_undone_exactly(tiny: Build, shake: Shake) -> None:
    """The same logits from μ = 0: what the evaluation of a finished run loads."""
    model = node_model(tiny("bert"), shake)
    assert model.center is not None
    model.load({**model.read(), HEAD_CENTER: drawn((32,))})
    batch = {"input_ids": torch.arange(1, 9)[None]}
    with torch.no_grad():
        before = model.logits(batch)
        exported = {
            name: tensor.detach().numpy()
            for name, tensor in model.center.folded({n: torch.from_numpy(a) for n, a in model.read().items() if n != HEAD_CENTER}).items()
        }
        model.load(model.center.unfolded(exported))
        torch.testing.assert_close(model.logits(batch), before, rtol=1e-5, atol=1e-5)
    assert not model.read()[HEAD_CENTER].any()


def test_a_head_without_a_bias_is_refused(tiny: Build) -> None:
    adapted = attach_lora(tiny("llama"), Lora(r=4), seed=1, freeze_a=False)
    with pytest.raises(FedethosError, match="MODEL-422"):
        center_head(adapted)
