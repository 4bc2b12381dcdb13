"""The training stages that recipes name: from shards, samples, pairs and problems to models."""

from __future__ import annotations

from typing import Any

from phikit.stage import Stage
from phikit.train import (
    stage_dpo,
    stage_grpo,
    stage_import,
    stage_next_token,
    stage_rollouts,
    stage_start,
)

STAGES: list[Stage[Any]] = [
    *stage_import.STAGES,
    *stage_start.STAGES,
    *stage_next_token.STAGES,
    *stage_rollouts.STAGES,
    *stage_dpo.STAGES,
    *stage_grpo.STAGES,
]
