"""The training stages that recipes name: from shards, samples, pairs and problems to models."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.chat.format import chat_format
from phikit.data.pack import Batches, Example, Rows, pack
from phikit.data.shards import Shards
from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.lanes import lane_count
from phikit.records import Pair, Sample, read_records
from phikit.stage import Context, Estimate, Stage
from phikit.train import loop
from phikit.train.models import (
    ModelSettings,
    extended,
    load_model,
    load_tokenizer,
    new_model,
    pad_id,
    parts,
    write_model,
)
from phikit.train.objectives.dpo import Dpo, DpoLoss, stored_reference
from phikit.train.objectives.grpo import Grpo
from phikit.train.objectives.grpo_settings import GrpoLoss, RolloutSettings
from phikit.train.objectives.next_token import NextToken
from phikit.train.schedules import Schedule
from phikit.train.settings import TrainSettings
from phikit.train.state import Checkpoints

Inputs = Mapping[str, Path]


class NextTokenSettings(TrainSettings):
    """What the stages that predict next tokens share."""

    batch_rows: int = Field(default=32, ge=1, description="rows per step")
    epochs: float = Field(default=1.0, gt=0, description="passes over the packed rows")
    steps: int | None = Field(
        default=None, ge=1, description="number of steps, instead of `epochs`"
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the target spread over the vocabulary (flash: 0.1)",
    )
    z_loss: float = Field(
        default=0.0, ge=0, description="factor of log(Z)²; 0: off (not in the report)"
    )

    def total_steps(self, rows: int) -> int:
        return self.steps or math.ceil(self.epochs * rows / self.batch_rows)


class PretrainSettings(NextTokenSettings):
    """Pre-training from random weights. phi-4: peak LR 3e-4, linear warm-up and decay, weight
    decay 0.1, 5,760 rows of 4,096 tokens per step; betas, clipping and warm-up not published."""

    model: ModelSettings = ModelSettings()
    context: int = Field(default=256, ge=8, description="tokens per row (phi-4: 4096)")


class MidtrainSettings(NextTokenSettings):
    """Mid-training at a longer context. phi-4: 4K → 16K, RoPE base 250,000, peak LR a tenth of
    pre-training's, 30 % long documents and 70 % recall of the pre-training mixture."""

    lr: float = Field(
        default=3e-5, gt=0, description="peak learning rate (phi-4: pre-training's / 10)"
    )
    context_factor: int = Field(
        default=4, ge=1, description="how many times longer the context becomes"
    )
    rope_theta: float = Field(
        default=50_000.0, gt=0, description="RoPE base (phi-4: 250,000 at 16K)"
    )
    batch_rows: int = Field(default=8, ge=1, description="rows per step")


class SftSettings(NextTokenSettings):
    """Supervised fine-tuning on the assistant's tokens. phi-4: LR 1e-6 over about 8 G tokens;
    phi-4-reasoning: 1e-5, warm-up 450 of 16,000 steps, weight decay 1e-4, about 2 passes."""

    lr: float = Field(default=1e-5, gt=0, description="peak learning rate")
    context: int | None = Field(
        default=None, ge=8, description="tokens per row; the model's when left out"
    )
    epochs: float = Field(default=2.0, gt=0, description="passes over the packed rows")


class DpoSettings(TrainSettings):
    """Preference optimisation on pairs of token ids. phi-4 published the numbers of pairs, but
    neither β nor learning rate nor epochs; mini-reasoning: LR 5e-7, 1 epoch."""

    lr: float = Field(default=5e-7, gt=0, description="peak learning rate")
    loss: DpoLoss = DpoLoss()
    batch_pairs: int = Field(default=64, ge=1, description="pairs per step")
    epochs: float = Field(default=1.0, gt=0, description="passes over the pairs")
    steps: int | None = Field(default=None, ge=1, description="steps, instead of `epochs`")
    max_tokens: int | None = Field(
        default=None, ge=2, description="longest prompt with answer; longer pairs are left out"
    )
    micro_tokens: int = Field(
        default=16_384, ge=1, description="tokens computed at once (changes memory, not maths)"
    )


class GrpoSettings(TrainSettings):
    """Reinforcement from verified rewards. Reasoning-plus: LR 5e-8, cosine with 10 warm-up steps,
    90 steps; mini-reasoning: LR 5e-7."""

    lr: float = Field(default=5e-8, gt=0, description="peak learning rate")
    schedule: Schedule = Field(default="cosine", description="linear, cosine, wsd or constant")
    warmup: float = Field(default=10, ge=0, description="steps of warm-up, or their share below 1")
    steps: int = Field(default=90, ge=1, description="optimiser steps")
    rollouts: RolloutSettings = RolloutSettings()
    loss: GrpoLoss = GrpoLoss()
    micro_tokens: int = Field(
        default=16_384, ge=1, description="tokens computed at once (changes memory, not maths)"
    )
    checkpoint_every: int = Field(default=10, ge=1, description="iterations between checkpoints")


def run_pretrain(ctx: Context, settings: PretrainSettings, inputs: Inputs) -> dict[str, Any]:
    tokenizer = load_tokenizer(inputs["tokenizer"])
    model = new_model(settings.model.decoder(tokenizer, settings.context), ctx.seed)
    rows = _shard_rows(inputs["shards"], settings.context, pad_id(model))
    return _next_token(ctx, settings, model, rows, inputs["tokenizer"] / "tokenizer")


def run_midtrain(ctx: Context, settings: MidtrainSettings, inputs: Inputs) -> dict[str, Any]:
    model = load_model(inputs["model"])
    context = model.config.max_positions * settings.context_factor
    model = extended(model, context, settings.rope_theta)
    rows = _shard_rows(inputs["shards"], context, pad_id(model))
    return _next_token(ctx, settings, model, rows, inputs["model"] / "model")


def run_sft(ctx: Context, settings: SftSettings, inputs: Inputs) -> dict[str, Any]:
    model = load_model(inputs["model"])
    chat = chat_format(load_tokenizer(inputs["model"]))
    examples: list[Example] = []
    for key in parts(list(inputs), "samples"):
        for sample in read_records(inputs[key] / "samples.parquet", Sample):
            if sample.messages and sample.response:
                rendered = chat.render(sample.messages)
                examples.append((rendered.ids, rendered.trained))
    if not examples:
        raise PhikitError(
            "train.sft: none of its samples has messages that end with the assistant's",
            "give it the folder of a stage that writes chat samples",
        )
    context = settings.context or model.config.max_positions
    rows = pack(examples, context, pad_id(model), overlong="truncate")
    return _next_token(ctx, settings, model, rows, inputs["model"] / "model")


def run_dpo(ctx: Context, settings: DpoSettings, inputs: Inputs) -> dict[str, Any]:
    model = load_model(inputs["model"])
    most = settings.max_tokens or model.config.max_positions
    read = [
        pair
        for key in parts(list(inputs), "pairs")
        for pair in read_records(inputs[key] / "pairs.parquet", Pair)
    ]
    pairs = [p for p in read if _usable(p, most)]
    if not pairs:
        raise PhikitError(
            f"train.dpo: none of {len(read)} pairs has two answers within {most} tokens",
            "raise max_tokens, or look at what the stages before it made",
        )
    steps = settings.steps or math.ceil(settings.epochs * len(pairs) / settings.batch_pairs)

    def run() -> dict[str, Any]:
        reference_P2 = stored_reference(
            ctx.dir, inputs["model"] / "model" / "model.safetensors",
            model, pairs, settings.micro_tokens, settings.precision,
        )  # fmt: skip
        objective = Dpo(
            pairs, reference_P2, settings.loss,
            settings.batch_pairs, settings.micro_tokens, ctx.seed,
            lane_count(model.config.parameters, ctx.threads),
        )  # fmt: skip
        return loop.train(ctx, model, objective, settings, steps)

    result = finish(ctx, model, inputs["model"] / "model", settings, run)
    kinds = sorted({p.kind for p in pairs})
    return result | {
        "pairs": {kind: sum(p.kind == kind for p in pairs) for kind in kinds},
        "left_out": len(read) - len(pairs),
        **_last(ctx, "accuracy", "margin"),
    }


def run_grpo(ctx: Context, settings: GrpoSettings, inputs: Inputs) -> dict[str, Any]:
    model = load_model(inputs["model"])
    chat = chat_format(load_tokenizer(inputs["model"]))
    room = model.config.max_positions - settings.rollouts.max_tokens
    read = [s for s in read_records(_problems(inputs["problems"]), Sample) if s.verifier]
    problems = [s for s in read if len(chat.render(s.prompt, generation_prompt=True).ids) <= room]
    if not problems:
        raise PhikitError(
            f"train.grpo: none of {len(read)} problems with a verifier leaves "
            f"{settings.rollouts.max_tokens} tokens for the answer",
            f"the model's context is {model.config.max_positions}; lower rollouts.max_tokens",
        )
    if settings.steps % settings.loss.updates:
        raise PhikitError(
            f"train.grpo: {settings.steps} steps are no whole number of iterations of "
            f"{settings.loss.updates} updates",
            "make steps a multiple of loss.updates",
        )
    # a checkpoint never falls between the updates of one iteration
    every = settings.checkpoint_every * settings.loss.updates
    settings = settings.model_copy(update={"checkpoint_every": every})
    frozen = load_model(inputs["model"]) if settings.loss.kl_to == "reference" else None
    objective = Grpo(
        model, chat, problems, settings.rollouts, settings.loss, settings.steps,
        settings.micro_tokens, settings.precision, ctx.seed, frozen,
        lane_count(model.config.parameters, ctx.threads),
    )  # fmt: skip
    result = finish(
        ctx, model, inputs["model"] / "model", settings,
        lambda: loop.train(ctx, model, objective, settings, settings.steps),
    )  # fmt: skip
    return (
        result
        | {"problems": len(problems), "left_out": len(read) - len(problems)}
        | _last(ctx, "reward", "right", "length", "engine_gap")
    )


def _problems(folder: Path) -> Path:
    items = folder / "items.parquet"
    return items if items.exists() else folder / "samples.parquet"


def _usable(pair: Pair, most: int) -> bool:
    longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
    whole = pair.prompt_ids and pair.chosen_ids and pair.rejected_ids
    return bool(whole) and len(pair.prompt_ids) + longest <= most


def _last(ctx: Context, *names: str) -> dict[str, float | None]:
    """Means over the last tenth of the steps."""
    rows = ctx.metrics.rows[-max(1, len(ctx.metrics.rows) // 10) :]
    found = {n: [row[n] for row in rows if row.get(n) is not None] for n in names}
    return {n: round(sum(v) / len(v), 4) if v else None for n, v in found.items()}


def _shard_rows(folder: Path, context: int, pad: int) -> Rows:
    return pack([(ids, None) for ids in Shards(folder).documents()], context, pad)


def _next_token(
    ctx: Context, settings: NextTokenSettings, model: Decoder, rows: Rows, tokenizer: Path
) -> dict[str, Any]:
    """Trains on packed rows and writes the model."""
    steps = settings.total_steps(len(rows))
    lanes = lane_count(model.config.parameters, ctx.threads)
    objective = NextToken(
        Batches(rows, settings.batch_rows, ctx.seed),
        settings.microbatch or math.ceil(settings.batch_rows / lanes),
        settings.label_smoothing,
        settings.z_loss,
    )
    result = finish(
        ctx, model, tokenizer, settings,
        lambda: loop.train(ctx, model, objective, settings, steps),
    )  # fmt: skip
    return result | {
        "parameters": model.config.parameters,
        "epochs": round(steps * settings.batch_rows / len(rows), 3),
        "packing": rows.stats,
    }


def finish(
    ctx: Context,
    model: Decoder,
    tokenizer: Path,
    settings: TrainSettings,
    run: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Runs the training unless its model is there already, writes the model, drops checkpoints.

    The model appears in one piece when all is done, so a run that was killed after that has only
    its checkpoints left to remove.
    """
    checkpoints = Checkpoints(ctx.dir / "checkpoints", settings.keep_checkpoints)
    if (ctx.dir / "model").is_dir():
        result = loop.summary(ctx, 0.0)
        ctx.cost.tokens_trained = result["tokens"]
    else:
        result = run()
        write_model(model, tokenizer, ctx.dir, settings.save_dtype)
    checkpoints.remove()
    return result


def _size(settings: NextTokenSettings) -> Estimate:
    amount = f"{settings.steps:,} steps" if settings.steps else f"{settings.epochs:g} epochs"
    return Estimate(f"{amount} of {settings.batch_rows} rows, LR {settings.lr:g}")


def _dpo_size(settings: DpoSettings) -> Estimate:
    amount = f"{settings.steps:,} steps" if settings.steps else f"{settings.epochs:g} epochs"
    return Estimate(f"{amount} of {settings.batch_pairs} pairs, LR {settings.lr:g}")


def _grpo_size(settings: GrpoSettings) -> Estimate:
    r = settings.rollouts
    return Estimate(f"{settings.steps} steps, {r.prompts} × {r.group} answers, LR {settings.lr:g}")


STAGES: list[Stage[Any]] = [
    Stage(
        "train.pretrain", PretrainSettings, run_pretrain, ("shards", "tokenizer"),
        resumable=True, estimate=_size, help="train a model from random weights on shards",
    ),
    Stage(
        "train.midtrain", MidtrainSettings, run_midtrain, ("model", "shards"),
        resumable=True, estimate=_size, help="go on at a longer context and a raised RoPE base",
    ),
    Stage(
        "train.sft", SftSettings, run_sft, ("model", "samples*"),
        resumable=True, estimate=_size, help="fine-tune on the assistant's answers",
    ),
    Stage(
        "train.dpo", DpoSettings, run_dpo, ("model", "pairs*"),
        resumable=True, estimate=_dpo_size, help="learn preferences between answers or tokens",
    ),
    Stage(
        "train.grpo", GrpoSettings, run_grpo, ("model", "problems"),
        resumable=True, estimate=_grpo_size, help="learn from verified answers of its own",
    ),
]  # fmt: skip
