"""What a simulated attacker can do (``simulations/attacks.py``). Apart, because the command line names it before a heavy import."""

from __future__ import annotations

from typing import Literal

AttackKind = Literal["sign-flip", "scale", "label-flip", "metric-forging", "backdoor", "nan"]
