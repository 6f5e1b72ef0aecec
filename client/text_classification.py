"""The task ``text-classification``: LoRA adapters and a head on a frozen encoder, ``data.text`` as tokens or cached hidden states."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from peft import PeftModel

from fedethos.client.examples import HiddenInputs, Inputs, TokenInputs
from fedethos.client.frozen_prefix import caches_prefix
from fedethos.client.model import NodeModel, training_device
from fedethos.client.task import Task
from fedethos.data.records import Records
from fedethos.data.tokens import tokenize
from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.models import prefix
from fedethos.models.adapter import attach_lora, recompute_activations, save_adapter
from fedethos.models.assets import resolve
from fedethos.models.base import load_base
from fedethos.models.core import put_core_between
from fedethos.models.head_center import HeadCenter, center_head
from fedethos.privacy.self_check import synthetic_classification


def text_classification(job: Job, *, base: Path, scratch: Path, resources: ExitStack) -> Task:
    """Load the base model of ``job``, attach its adapter, and tokenise or cache what lies below it. See ``prepare_task``."""
    loaded = load_base(
        resolve(job.model.path, base=base), num_labels=len(job.data.label.values), sha256=job.model.sha256, seed=job.simulation.seed
    )
    _check_length(job, loaded.model.config.max_position_embeddings)
    adapted = attach_lora(loaded.model, job.lora, seed=job.simulation.seed, freeze_a=job.aggregation == "ffa")
    if job.aggregation == "fedsb":
        put_core_between(adapted, seed=job.simulation.seed)
    if job.training.gradient_checkpointing:
        recompute_activations(adapted)
    adapted.to(training_device())
    center = _center(job, adapted, fresh_head=loaded.fresh_head)
    cached = caches_prefix(job, adapted)

    def inputs(records: Records) -> Inputs:
        table = tokenize(records.text, loaded.tokenizer, job.model.max_length)
        if not cached:
            return TokenInputs(table)
        cache = prefix.build_cache(adapted, table, folder=scratch, dtype=np.dtype(job.training.cache_dtype))
        return HiddenInputs(resources.enter_context(cache))

    model = NodeModel(adapted, prefix.tail(adapted) if cached else adapted, loaded.sha256, center=center)
    return Task(
        model=model,
        inputs=inputs,
        synthetic_loss=synthetic_classification(loaded.model.config.vocab_size, len(job.data.label.values)),
        longest_loss=synthetic_classification(loaded.model.config.vocab_size, len(job.data.label.values), length=job.model.max_length),
        save=lambda folder: save_adapter(folder, adapted, model.residual, fold=center.folded if center else dict),
    )


def _center(job: Job, adapted: PeftModel, *, fresh_head: bool) -> HeadCenter | None:
    """A head that the base model brings would read other numbers than it was trained on: ``auto`` leaves it alone."""
    if not job.center_head:
        return None
    if job.training.center_head == "on":
        return center_head(adapted)
    with suppress(FedethosError):  # the head cannot be centred
        return center_head(adapted) if fresh_head else None
    return None


def _check_length(job: Job, longest: int) -> None:
    if job.model.max_length > longest:
        raise FedethosError(
            "MODEL-421",
            f"model.max_length is {job.model.max_length}, and the base model reads at most {longest} tokens.",
            where="model.max_length",
            fix="Lower it.",
        )
