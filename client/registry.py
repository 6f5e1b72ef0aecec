"""From the name of a task in the job to the task on this machine. A task's libraries are imported for its own jobs alone."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from fedethos.client.task import Task
from fedethos.job import Job


def prepare_task(job: Job, *, base: Path, scratch: Path, resources: ExitStack) -> Task:
    """Load or make the model of ``job`` and say how records become its inputs.

    Parameters
    ----------
    base : Path
        Folder that relative paths in the job start from.
    scratch : Path
        Folder for private temporary files; they are deleted when ``resources`` closes.
    """
    if job.task == "tabular-classification":
        from fedethos.client.tabular_classification import tabular_classification

        return tabular_classification(job)
    if job.is_language:
        from fedethos.client.language_model import language_model

        return language_model(job, base=base, scratch=scratch, resources=resources)
    from fedethos.client.text_classification import text_classification

    return text_classification(job, base=base, scratch=scratch, resources=resources)
