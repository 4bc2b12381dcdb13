"""What the stages beside the search share: an engine, problems in portions, and what it cost.

The heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from phikit.engine.base import Precision
from phikit.records import Sample
from phikit.stage import Context
from phikit.verify.base import read_problems

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat
    from phikit.engine.local import LocalEngine


def engine_of(directory: Path, batch: int, precision: Precision) -> tuple[LocalEngine, ChatFormat]:
    """The engine of a model directory, and how to talk to its model."""
    from phikit.chat.format import chat_format
    from phikit.chat.load import load_tokenizer
    from phikit.engine.load import dtype_of, load
    from phikit.engine.local import LocalEngine

    model = load(directory, dtype_of(precision))
    return LocalEngine(model, max_batch=batch), chat_format(load_tokenizer(directory))


def portions(
    folder: Path, chat: ChatFormat, context: int, size: int = 64
) -> Iterator[list[tuple[Sample, tuple[int, ...]]]]:
    """The problems of a stage with their prompts, so many at a time; those that fit the context."""
    portion = []
    for sample in read_problems(folder):
        messages = sample.prompt or ({"role": "user", "content": sample.text},)
        ids = tuple(chat.render(messages, generation_prompt=True).ids)
        if len(ids) < context:
            portion.append((sample, ids))
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion


def count_cost(ctx: Context, engine: LocalEngine) -> None:
    """Adds what the engine has generated and read to the stage's cost."""
    tokens = engine.tokens_generated + engine.tokens_prefilled
    ctx.cost.tokens_generated += engine.tokens_generated
    ctx.cost.flops += tokens * engine.model.config.flops_per_token(128)
