"""Learning-rate schedules: the factor of the peak rate at each step."""

from __future__ import annotations

import math
from typing import Literal

from phikit.errors import PhikitError

Schedule = Literal["linear", "cosine", "wsd", "constant"]


def factor(
    kind: Schedule,
    step: int,
    steps: int,
    warmup: int,
    decay_share: float = 0.2,
    floor: float = 0.0,
) -> float:
    """The factor in (0, 1] for step `step` (from 0) of `steps`; see `check` for what is none.

    Every kind warms up linearly over `warmup` steps, the first of which is already above zero.
    "linear" then falls to `floor` in a straight line (as phi-4 was pre-trained: report,
    section 3), "cosine" along half a wave, "wsd" stays at 1 and falls linearly over the last
    `decay_share` of all steps, "constant" stays. The last step is the last one above the floor.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    left = steps - step
    if kind == "constant":
        return 1.0
    if kind == "wsd":
        decay = max(1, min(round(steps * decay_share), steps - warmup))
        return floor + (1 - floor) * min(1.0, left / decay)
    remaining = left / max(1, steps - warmup)
    if kind == "cosine":
        remaining = 0.5 - 0.5 * math.cos(math.pi * remaining)
    return floor + (1 - floor) * remaining


def warmup_steps(warmup: float, steps: int) -> int:
    """A share of the steps when below 1, which leaves at least one of them; else a number."""
    return min(round(warmup * steps), steps - 1) if warmup < 1 else round(warmup)


def check(kind: Schedule, steps: int, warmup: float, decay_share: float) -> None:
    """
    Raises:
        PhikitError: a run of so many steps would end before its rate has reached the peak.
    """
    first = warmup_steps(warmup, steps)
    if first >= steps:
        raise PhikitError(
            f"warmup is {first} steps, but the run has {steps}: its rate would never reach lr",
            "lower warmup (below 1 it is a share of the steps), or raise steps or epochs",
        )
    share = warmup if warmup < 1 else first / steps
    if kind == "wsd" and share + decay_share > 1 + 1e-9:
        raise PhikitError(
            f"warmup is {share:.0%} of the {steps} steps and decay_share {decay_share:.0%}: they "
            "overlap, and the rate would never reach lr",
            "lower one of them, until they are 100% or less together",
        )
