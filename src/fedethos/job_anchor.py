"""What ``training.anchor`` says: how strongly a language model is held to its base on text that the base itself writes."""

from __future__ import annotations

from pydantic import Field

from fedethos.section import PositiveFloat, Section


class Anchor(Section):
    kl_coef: PositiveFloat = Field(
        1.0, description="Weight of KL(base || model), in nats per token of that text, beside the loss of the records. More: held closer."
    )
    texts: int = Field(128, ge=1, le=100_000, description="How many texts the base model writes before training, from simulation.seed.")
    tokens: int = Field(32, ge=2, le=4096, description="Length of each text.")
    batch_size: int = Field(16, ge=1, le=4096, description="Texts per training step, in turn. They cost time, and no epsilon.")
