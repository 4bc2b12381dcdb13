"""The stage `train.grpo`: problems in, a model that answers more of them out.

The heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.stage import Context, Estimate, Stage
from phikit.train.objectives.grpo_settings import GeneratorSettings, GrpoLoss, RolloutSettings
from phikit.train.schedules import Schedule
from phikit.train.settings import TrainSettings
from phikit.verify.base import read_problems

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat
    from phikit.records import Sample


class GrpoSettings(TrainSettings):
    """Reinforcement from verified rewards. Reasoning-plus: LR 5e-8, cosine with 10 warm-up steps,
    90 steps; mini-reasoning: LR 5e-7."""

    lr: float = Field(default=5e-8, gt=0, description="peak learning rate")
    schedule: Schedule = Field(default="cosine", description="linear, cosine, wsd or constant")
    warmup: float = Field(default=10, ge=0, description="steps of warm-up, or their share below 1")
    steps: int = Field(default=90, ge=1, description="optimiser steps")
    rollouts: RolloutSettings = RolloutSettings()
    generator: GeneratorSettings = GeneratorSettings()
    loss: GrpoLoss = GrpoLoss()
    micro_tokens: int = Field(
        default=16_384, ge=1, description="tokens computed at once (changes memory, not maths)"
    )
    checkpoint_every: int = Field(default=10, ge=1, description="iterations between checkpoints")


def run_grpo(ctx: Context, settings: GrpoSettings, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Trains a model on its own answers to problems, rewarded by the problems' verifiers.

    Returns:
        the training's summary, how many problems were used and left out as too long, and the last
        steps' reward, share of right answers, groups kept, length and the engine's gap.

    Raises:
        PhikitError: no problem leaves room for an answer, or the steps are no whole number of
            iterations.
    """
    from phikit.chat.format import chat_format
    from phikit.train import loop, parallel
    from phikit.train.models import load_model, load_tokenizer, model_files, starting_model
    from phikit.train.objectives.drawing import drawer
    from phikit.train.objectives.grpo import Grpo
    from phikit.train.result import finish, last_steps

    model = starting_model(inputs["model"], settings, ctx.seed)
    chat = chat_format(load_tokenizer(inputs["model"]))
    read = read_problems(inputs["problems"])
    problems = _answerable(read, chat, model.config.max_positions, settings.rollouts.max_tokens)
    if settings.steps % settings.loss.updates:
        raise PhikitError(
            f"train.grpo: {settings.steps} steps are no whole number of iterations of "
            f"{settings.loss.updates} updates",
            "make steps a multiple of loss.updates",
        )
    # a checkpoint never falls between the updates of one iteration
    every = settings.checkpoint_every * settings.loss.updates
    settings = settings.model_copy(update={"checkpoint_every": every})
    frozen = None
    if settings.loss.kl_to == "reference":  # below an adapter the first weights are still there
        frozen = model if settings.lora is not None else load_model(inputs["model"])
    problem_files = (inputs["problems"] / name for name in ("samples.parquet", "items.parquet"))
    data = [*filter(Path.exists, problem_files), *model_files(inputs["model"])]
    draws = drawer(settings.rollouts, settings.generator)
    objective = Grpo(
        model, chat, problems, settings.rollouts, settings.loss, settings.steps,
        settings.micro_tokens, settings.precision, ctx.seed, frozen,
        parallel.lanes(model.config.parameters, ctx.threads) * parallel.world(), draws,
    )  # fmt: skip
    try:
        result = finish(
            ctx, model, inputs["model"] / "model", settings,
            data, lambda: loop.train(ctx, model, objective, settings, settings.steps),
        )  # fmt: skip
    finally:
        draws.close()
    idle = sum(not row["groups_kept"] for row in ctx.metrics.rows if "groups_kept" in row)
    drawn = settings.steps // settings.loss.updates
    return (
        ({"note": "no group kept: unchanged"} if idle == drawn else {})
        | result
        | {"steps_without_groups": idle}
        | {"problems": len(problems), "left_out": len(read) - len(problems)}
        | last_steps(ctx, "reward", "right", "groups_kept", "length", "engine_gap")
    )


def _answerable(
    read: Sequence[Sample], chat: ChatFormat, context: int, max_tokens: int
) -> list[Sample]:
    """The problems whose prompts leave `max_tokens` of the model's context for the answer.

    Raises:
        PhikitError: none does.
    """
    room = context - max_tokens
    problems = [s for s in read if len(chat.render(s.prompt, generation_prompt=True).ids) <= room]
    if not problems:
        raise PhikitError(
            f"train.grpo: none of {len(read)} problems with a verifier leaves "
            f"{max_tokens} tokens for the answer",
            f"the model's context is {context}; lower rollouts.max_tokens",
        )
    return problems


def _grpo_size(settings: GrpoSettings) -> Estimate:
    r = settings.rollouts
    answers = settings.steps * r.prompts * r.group
    tokens = answers * r.max_tokens / 3  # answers are seldom as long as they may be
    return Estimate(
        f"{settings.steps} steps, {r.prompts} × {r.group} answers, LR {settings.lr:g}",
        trained=tokens,
        generated=tokens,
        context=r.max_tokens,
    )


STAGES: list[Stage[Any]] = [
    Stage(
        "train.grpo", GrpoSettings, run_grpo, ("model", "problems"),
        resumable=True, estimate=_grpo_size, help="learn from verified answers of its own",
    ),
]  # fmt: skip
