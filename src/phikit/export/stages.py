"""The export stages that recipes can name.

The heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import write_json
from phikit.stage import Config, Context, Estimate, Stage


class HfConfig(Config):
    """Settings of `export.hf`."""

    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="the precision of the written weights"
    )
    prompts: tuple[str, ...] = Field(
        default=(
            "Anna has 3 apples and buys 4 more. How many apples has she?",
            "Solve for x: 3x + 5 = 20.",
            "Tom is older than Ann. Ann is older than Bo. Who is the youngest?",
            "What does this print?\nprint(sum(range(5)))",
            "How many minutes are 2 hours and 15 minutes?",
            "Who are you?",
            "Write a function that doubles a number.",
            "What is 12 + 30?",
        ),
        min_length=1,
        description="the questions on which transformers must agree with phikit",
    )
    limit: float = Field(default=1e-3, gt=0, description="how far a logit may be off, in float32")
    max_tokens: int = Field(
        default=64, ge=1, description="how long the compared greedy answers may be"
    )


def run_hf(ctx: Context, config: HfConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Writes `model/` in the Hugging Face layout and `parity.json`; fails if parity does."""
    from phikit.export.hf import DTYPES, check_parity, write_model

    source = inputs["model"] / "model"
    if not source.is_dir():
        raise PhikitError(f"{inputs['model']}: there is no folder model/ in it to export")
    directory = write_model(source, ctx.dir / "model", DTYPES[config.dtype])
    ctx.progress.update(1, 2)
    parity = check_parity(directory, config.prompts, config.limit, config.max_tokens)
    write_json(ctx.dir / "parity.json", parity.row())
    ctx.cost.tokens_generated += parity.greedy_tokens
    size = sum(f.stat().st_size for f in directory.iterdir())
    return {"dtype": config.dtype, "bytes": size, "parity": parity.note, **parity.row()}


STAGES: list[Stage[Any]] = [
    Stage(
        verb="export.hf",
        config=HfConfig,
        run=run_hf,
        inputs=("model",),
        estimate=lambda c: Estimate(f"{c.dtype}, {len(c.prompts)} prompts compared", 20.0),
        help="the Hugging Face layout as Phi3ForCausalLM, held against transformers",
    )
]
