"""Group-balanced sampling at a node: each record gets the public rate of its group. Rates are in ``privacy/sampling.py``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fedethos.cells import weighed_attribute
from fedethos.client.examples import Examples
from fedethos.job import Job
from fedethos.privacy.sampling import group_rates


def balanced(examples: Examples, job: Job, declared_size: int) -> Examples:
    """The same records, each with the rate of its group; as they are where everybody has the same."""
    rates = group_rates(job, declared_size)
    if rates is None:
        return examples
    return replace(examples, rate=np.asarray(rates)[examples.groups[weighed_attribute(job)]])
