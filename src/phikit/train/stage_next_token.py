"""The stages that predict next tokens: pre-training, mid-training, supervised fine-tuning.

The heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.records import Sample, read_records
from phikit.stage import Context, Estimate, Stage, given
from phikit.train.settings import ModelSettings, TrainSettings

if TYPE_CHECKING:
    from phikit.data.pack import Example, Rows
    from phikit.models.decoder import Decoder

Inputs = Mapping[str, Path]
_SHARDS = ("tokens.bin", "bounds.npy", "sources.npy", "index.json")
_DOCUMENT = "document {}".format  # of the shards, in their order


class NextTokenSettings(TrainSettings):
    """What the stages that predict next tokens share."""

    batch_rows: int = Field(default=32, ge=1, description="rows per step")
    epochs: float = Field(default=1.0, gt=0, description="passes over the packed rows")
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
        """Steps over so many rows: as stated, or as the epochs need."""
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
    rope_theta: float | None = Field(
        default=None, gt=0,
        description="set this RoPE base, and extend the model to `context` if that is longer "
        "(phi-4-reasoning: 500,000)",
    )  # fmt: skip
    packing: bool = Field(
        default=True, description="several samples in a row, or one (mini-reasoning's step 2)"
    )
    epochs: float = Field(default=2.0, gt=0, description="passes over the packed rows")


def run_pretrain(ctx: Context, settings: PretrainSettings, inputs: Inputs) -> dict[str, Any]:
    """Trains new weights on shards, with the tokenizer they were made with."""
    from phikit.train.models import load_tokenizer, new_model, tokenizer_files

    tokenizer = load_tokenizer(inputs["tokenizer"])
    model = new_model(settings.model.decoder(tokenizer, settings.context), ctx.seed)
    rows = _shard_rows(inputs["shards"], settings.context, model)
    kept = inputs["tokenizer"] / "tokenizer"
    data = [*_shard_files(inputs["shards"]), *tokenizer_files(kept)]
    return _next_token(ctx, settings, model, rows, kept, data, _DOCUMENT)


def run_midtrain(ctx: Context, settings: MidtrainSettings, inputs: Inputs) -> dict[str, Any]:
    """Trains a model further on shards, in a context `context_factor` times its own."""
    from phikit.models.architectures import read_config
    from phikit.train.models import model_files, model_of, starting_model

    before = read_config(model_of(inputs["model"])).max_positions
    context = before * settings.context_factor
    longer = context, settings.rope_theta
    model = starting_model(inputs["model"], settings, ctx.seed, longer)
    rows = _shard_rows(inputs["shards"], context, model)
    data = [*_shard_files(inputs["shards"]), *model_files(inputs["model"])]
    return _next_token(ctx, settings, model, rows, inputs["model"] / "model", data, _DOCUMENT)


def run_sft(ctx: Context, settings: SftSettings, inputs: Inputs) -> dict[str, Any]:
    """Trains a model on chats; the loss is on what the assistant says.

    Raises:
        PhikitError: no sample fits, or a token id or the context is beyond the model.
    """
    from phikit.chat.format import chat_format
    from phikit.data.pack import pack
    from phikit.models.architectures import read_config
    from phikit.train.fitting import check_ids, check_length
    from phikit.train.models import (
        load_tokenizer,
        model_files,
        model_of,
        pad_id,
        starting_model,
    )

    longer = None
    if settings.rope_theta is not None:
        before = read_config(model_of(inputs["model"])).max_positions
        longer = max(settings.context or 0, before), settings.rope_theta
    model = starting_model(inputs["model"], settings, ctx.seed, longer)
    context = settings.context or model.config.max_positions
    check_length(
        context, model.config, "train.sft: context",
        "lower it, or set rope_theta too: that extends the model",
    )  # fmt: skip
    chat = chat_format(load_tokenizer(inputs["model"]))
    examples: list[Example] = []
    ids: list[str] = []
    unanswered = 0
    files = [folder / "samples.parquet" for folder in given(inputs, "samples")]
    for path in files:
        for sample in read_records(path, Sample):
            if not sample.response:
                unanswered += 1
                continue
            try:
                rendered = chat.render(sample.messages)
            except PhikitError as e:
                raise PhikitError(f"{path}: sample {sample.id}: {e.message}", e.hint) from None
            check_ids(rendered.ids, model.config, f"{path}: sample {sample.id}")
            examples.append((rendered.ids, rendered.trained))
            ids.append(sample.id)
    if not examples:
        raise PhikitError(
            "train.sft: none of its samples has messages that end with the assistant's",
            "give it the folder of a stage that writes chat samples",
        )
    window = 8192 if settings.packing else 1
    rows = pack(examples, context, pad_id(model), overlong="truncate", window=window)
    data = [*files, *model_files(inputs["model"])]
    done = _next_token(
        ctx, settings, model, rows, inputs["model"] / "model", data, ids.__getitem__
    )  # fmt: skip
    return done | {"unanswered": unanswered}


def _shard_files(folder: Path) -> list[Path]:
    return [folder / name for name in _SHARDS]


def _shard_rows(folder: Path, context: int, model: Decoder) -> Rows:
    from phikit.data.pack import pack
    from phikit.data.shards import Shards
    from phikit.train.fitting import check_ids
    from phikit.train.models import pad_id

    documents = list(Shards(folder).documents())
    for number, ids in enumerate(documents):
        check_ids(ids, model.config, f"{folder}: document {number}")
    return pack([(ids, None) for ids in documents], context, pad_id(model))


def _next_token(
    ctx: Context,
    settings: NextTokenSettings,
    model: Decoder,
    rows: Rows,
    tokenizer: Path,
    data: Sequence[Path],
    names: Callable[[int], str],
) -> dict[str, Any]:
    """Trains on packed rows and writes the model.

    Args:
        data: the files that the rows and the model are of; see `phikit.train.result.finish`.
        names: what the packed examples are called, by their numbers.
    """
    from phikit.data.pack import Batches
    from phikit.train import loop, parallel
    from phikit.train.objectives.next_token import NextToken
    from phikit.train.result import copies, finish

    steps = settings.total_steps(len(rows))
    lanes = parallel.lanes(model.config.parameters, ctx.threads)
    objective = NextToken(
        Batches(rows, settings.batch_rows, ctx.seed),
        settings.microbatch or math.ceil(settings.batch_rows / (lanes * parallel.world())),
        settings.label_smoothing,
        settings.z_loss,
        names,
    )
    result = finish(
        ctx, model, tokenizer, settings, data,
        lambda: loop.train(ctx, model, objective, settings, steps),
    )  # fmt: skip
    return result | {
        "parameters": model.config.parameters,
        "epochs": round(steps * settings.batch_rows / len(rows), 3),
        **copies("row", settings.batch_rows, len(rows)),
        "packing": rows.stats,
    }


_VOCABULARY = 2048  # for the rough time of a dry run, before there is a tokenizer


def _size(settings: NextTokenSettings) -> Estimate:
    amount = f"{settings.steps:,} steps" if settings.steps else f"{settings.epochs:g} epochs"
    context = getattr(settings, "context", 0) or 0
    config = None
    if isinstance(settings, PretrainSettings):
        config = settings.model.planned(_VOCABULARY, settings.context)
    return Estimate(
        f"{amount} of {settings.batch_rows} rows, LR {settings.lr:g}",
        seconds=3.0,
        passes=settings.epochs,
        trained=(settings.steps or 0) * settings.batch_rows * context,
        parameters=config.parameters if config else 0.0,
        shape=config,
        context=context,
    )


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
]  # fmt: skip
