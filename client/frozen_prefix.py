"""Whether a task computes the layers below the first adapter once a record (``training.cache_frozen_prefix``)."""

from __future__ import annotations

from peft import PeftModel

from fedethos.errors import FedethosError
from fedethos.job import Job
from fedethos.models.prefix import tail_start


def caches_prefix(job: Job, model: PeftModel) -> bool:
    """Raises MODEL-420 when the job says ``on`` and there is nothing to cache."""
    wish = job.training.cache_frozen_prefix
    if wish == "off":
        return False
    possible = tail_start(model) > 0
    if wish == "on" and not possible:
        raise FedethosError(
            "MODEL-420",
            "training.cache_frozen_prefix is on, but no whole layer lies below the first adapter.",
            where="lora.layers_to_transform",
            fix="Adapt upper layers only, or set training.cache_frozen_prefix to auto.",
        )
    return possible
