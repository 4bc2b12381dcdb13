"""The stages of this package: the search itself, and what its pairs are held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phikit.pivots.config import PivotsConfig
from phikit.pivots.controls import STAGES as CONTROLS
from phikit.pivots.refusals import REFUSAL_STAGES
from phikit.stage import Context, Estimate, Stage
from phikit.verify.base import read_problems


def run_search(ctx: Context, config: PivotsConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Searches the problems of one stage with the model of another; see `job.search_problems`."""
    from phikit.pivots.job import search_problems

    return search_problems(
        ctx, config, inputs["model"] / "model", read_problems(inputs["problems"])
    )


def _estimate(config: PivotsConfig) -> Estimate:
    """A problem takes some 5,000 tokens, most being left after the first look."""
    pairs = 0.2 * config.problems * 100
    if config.total_tokens:
        size = f"up to {config.total_tokens / 1e6:.1f} M tokens"
        return Estimate(size, tokens=pairs, generated=config.total_tokens)
    size = f"{config.problems or 'all'} problems"
    return Estimate(size, tokens=pairs, generated=5_000.0 * config.problems)


STAGES: list[Stage[Any]] = [
    Stage(
        verb="pivots.search",
        config=PivotsConfig,
        run=run_search,
        inputs=("model", "problems"),
        resumable=True,
        estimate=_estimate,
        help="Pivotal Token Search: the tokens that decide, and preference pairs from them",
    ),
    *CONTROLS,
    *REFUSAL_STAGES,
]
