"""The task ``tabular-classification``: a small model of its own on ``data.features``; all its parameters train."""

from __future__ import annotations

from functools import partial

import torch

from fedethos.client.examples import FeatureInputs
from fedethos.client.model import NodeModel, training_device
from fedethos.client.task import Task
from fedethos.data.features import feature_names
from fedethos.data.records import Records
from fedethos.job import Job
from fedethos.models.tabular import Architecture, make_tabular, save_tabular
from fedethos.privacy.self_check import synthetic_features


def tabular_classification(job: Job) -> Task:
    """The untrained model of ``job`` and its inputs."""
    architecture = Architecture.of(job)
    model = make_tabular(architecture, seed=job.simulation.seed).to(training_device())
    loss = synthetic_features(len(feature_names(architecture.features)), len(architecture.labels))
    return Task(
        model=NodeModel(model, model, architecture.sha256),
        inputs=_inputs,
        synthetic_loss=loss,
        longest_loss=loss,
        save=partial(save_tabular, model=model),
    )


def _inputs(records: Records) -> FeatureInputs:
    if records.features is None:
        raise ValueError("the records were read without data.features")
    return FeatureInputs(torch.from_numpy(records.features))
