"""What the stages beside the search share: problems in portions, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from phikit.engine.base import none_fits
from phikit.records import Sample
from phikit.stage import Context
from phikit.verify.base import read_problems

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat
    from phikit.engine.local import LocalEngine


def portions(
    folder: Path, chat: ChatFormat, context: int, tally: Counter[str], size: int = 64
) -> Iterator[list[tuple[Sample, tuple[int, ...]]]]:
    """The problems of a stage with their prompts, so many at a time; those that fit the context.

    Those that do not are counted in `tally`, as "too_long".

    Raises:
        PhikitError: none fits.
    """
    portion = []
    tally["too_long"] = fitting = 0
    for sample in read_problems(folder):
        messages = sample.prompt or ({"role": "user", "content": sample.text},)
        ids = tuple(chat.render(messages, generation_prompt=True).ids)
        if len(ids) >= context:
            tally["too_long"] += 1
            continue
        fitting += 1
        portion.append((sample, ids))
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion
    if not fitting:
        raise none_fits(str(folder), tally["too_long"], context)


def count_cost(ctx: Context, engine: LocalEngine) -> None:
    """Adds what the engine has generated and read to the stage's cost."""
    tokens = engine.tokens_generated + engine.tokens_prefilled
    ctx.cost.tokens_generated += engine.tokens_generated
    ctx.cost.flops += tokens * engine.model.config.flops_per_token(128)
