"""A job with a model of its own needs no transformers, PEFT or Opacus: imported, they cost more than the rounds of a small job."""

import json
import subprocess
import sys
from pathlib import Path

from peft import LoraConfig, get_peft_model
from torch import nn

from fedethos.models.peft_classes import is_lora_layer, is_lora_linear, is_peft_model

TABULAR = Path(__file__).parents[2] / "simulations/jobs/adult-tabular.yaml"

LIKE_THE_PROCESSES = """
import json, sys
from contextlib import ExitStack
from pathlib import Path
import fedethos.client.model_probe, fedethos.client.review, fedethos.client.site_node, fedethos.deployed_app
from fedethos.client.node import clipping_engine
from fedethos.client.registry import prepare_task
from fedethos.documents import load_job
from fedethos.privacy.self_check import check_engine

job = load_job(Path(sys.argv[1]), ["training.learning_rate=0.1"])
with ExitStack() as resources:
    task = prepare_task(job, base=Path(), scratch=Path(), resources=resources)
task.model.load(task.model.read())
assert task.model.base_weights() is None
check_engine(lambda bound: clipping_engine(job, bound), task.model.forward, task.model.parameters, task.synthetic_loss)
print(json.dumps(sorted(sys.modules)))
"""


def test_server_app_worker_and_review_of_a_tabular_job_leave_the_libraries_of_text_alone() -> None:
    command = [sys.executable, "-c", LIKE_THE_PROCESSES, str(TABULAR)]
    loaded = set(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    assert "torch" in loaded
    assert not loaded & {"transformers", "peft", "accelerate", "opacus", "sklearn", "fairlearn", "matplotlib", "torch._dynamo"}


def test_peft_s_classes_are_told_from_others() -> None:
    plain = nn.Sequential(nn.Linear(3, 2), nn.Embedding(4, 3))
    assert not any(is_peft_model(one) or is_lora_layer(one) or is_lora_linear(one) for one in plain.modules())
    adapted = get_peft_model(plain, LoraConfig(r=1, target_modules=["0", "1"]))
    linear, embedding = adapted.base_model.model
    assert is_peft_model(adapted) and not is_peft_model(linear)
    assert is_lora_layer(linear) and is_lora_layer(embedding)
    assert is_lora_linear(linear) and not is_lora_linear(embedding)
