"""Learning-rate schedules: the factor of the peak rate at each step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["linear", "cosine", "wsd", "constant"]


def factor(
    kind: Schedule,
    step: int,
    steps: int,
    warmup: int,
    decay_share: float = 0.2,
    floor: float = 0.0,
) -> float:
    """The factor in (0, 1] for step `step` (from 0) of `steps`.

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
        decay = max(1, round(steps * decay_share))
        return floor + (1 - floor) * min(1.0, left / decay)
    remaining = left / max(1, steps - warmup)
    if kind == "cosine":
        remaining = 0.5 - 0.5 * math.cos(math.pi * remaining)
    return floor + (1 - floor) * remaining
