"""Perplexity on neutral text: what a gain elsewhere cost in plain language.

exp(-log-likelihood / tokens) over all lines, each read from its beginning. It depends on the tokenizer: compare a model with its own base.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedethos.fairness.suites.files import not_this_benchmark, read_text
from fedethos.fairness.suites.suite import Likelihoods, Question, Suite, thin
from fedethos.fairness.suites.tally import Measure, Tally, ratio, tallies

MEASURES = {
    "perplexity": Measure(lambda sums: np.exp(ratio(sums[..., 0], sums[..., 1])), 1.0, np.inf),
    "nats_per_token": Measure(lambda sums: ratio(sums[..., 0], sums[..., 1]), 0.0, np.inf),
}


def perplexity(path: Path, *, count: int | None = None, seed: int = 0) -> Suite:
    """The lines of a text file; a unit is a line. DATA-191 when it has none."""
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise not_this_benchmark(path, "The file has no text.")
    chosen = thin(lines, count, seed, lambda line: "")
    return Suite(
        name="perplexity", items=len(chosen), questions=[Question(None, (line,)) for line in chosen], instruct=False, tally=tally_lines
    )


def tally_lines(answers: Likelihoods) -> dict[str, Tally]:
    """Answers float[n, 1]."""
    columns = np.stack([-answers.log_likelihood[:, 0], answers.tokens[:, 0].astype(np.float64)], axis=1)
    everything = tallies(columns, [str(row) for row in range(len(columns))], [""] * len(columns), MEASURES)
    return {name: tally for name, tally in everything.items() if name}
