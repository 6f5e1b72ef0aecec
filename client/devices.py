"""Where a site trains, and with how much memory at most: ``device`` and ``memory_gb`` of site.yaml.

The supervisor names the device in the worker's environment, so that the worker sees that one alone; the worker limits itself.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Mapping

from fedethos.errors import FedethosError
from fedethos.site import SiteDocument

log = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def visible_to_worker(device: str, environment: Mapping[str, str]) -> dict[str, str]:
    """``environment`` for a worker on ``device`` (auto, cpu or cuda:N; N counts what ``environment`` shows)."""
    chosen = dict(environment)
    if device == "cpu":
        chosen[_VISIBLE] = ""
    elif device.startswith("cuda:"):
        number = int(device.removeprefix("cuda:"))
        shown = [name for name in environment.get(_VISIBLE, "").split(",") if name]
        chosen[_VISIBLE] = (shown[number] if number < len(shown) else "") if _VISIBLE in environment else str(number)
    return chosen


def use_device(site: SiteDocument) -> None:
    """Check that the site's device is here, and keep to its memory cap. NODE-542 when a GPU is asked for and none is usable."""
    import torch

    on_gpu = torch.cuda.is_available()
    if site.device.startswith("cuda:") and not on_gpu:
        raise FedethosError(
            "NODE-542",
            "The GPU that site.yaml names is not usable here.",
            where="device",
            why="Training on the CPU instead could take a hundred times as long.",
            fix="Check the driver with nvidia-smi, and that torch is a CUDA build: fedethos env. Or set device: cpu.",
        )
    if site.memory_gb is None:
        return
    limit = int(site.memory_gb * 2**30)
    if on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), 0)
    else:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
