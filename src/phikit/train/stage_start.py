"""Where a recipe begins or stands: a published model, and how well a model predicts ordinary text.

The heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import cache_folder
from phikit.stage import Config, Context, Estimate, Stage

Inputs = Mapping[str, Path]


class StartSettings(Config):
    """A model that is here already: fetched before by its name, or in a folder."""

    model: str = Field(description="smollm2, a member of the family, or a model directory")


def run_start(ctx: Context, settings: StartSettings, inputs: Inputs) -> dict[str, Any]:
    """Copies a fetched model into the run, unchanged, as the stage's own.

    Raises:
        PhikitError: it is not on this machine; says how it is fetched.
    """
    from phikit.files import atomic_directory
    from phikit.models import checkpoint
    from phikit.models.architectures import read_config
    from phikit.train.models import TOKENIZER_FILES

    source = _find(settings.model)
    config = read_config(source)
    for file in TOKENIZER_FILES:
        if not (source / file).is_file():
            raise PhikitError(
                f"{source}: the model has no {file}, which training needs and hands on",
                "copy the tokenizer's files there from the model that it was made from",
            )
    if not (ctx.dir / "model").is_dir():
        with atomic_directory(ctx.dir / "model") as new:
            for path in [*checkpoint.weight_files(source), *source.glob("*.json")]:
                if path.is_file():
                    shutil.copyfile(path, new / path.name)
    return {"model": settings.model, "parameters": config.parameters}


def _find(name: str) -> Path:
    """The folder of a model that was fetched, by its name.

    Raises:
        PhikitError: it was not fetched; says how.
    """
    from phikit.models.family import find

    places = [Path(name), cache_folder() / name]
    member = find(name)
    if member is not None:
        folder = _hub_cache() / f"models--{member.repository.replace('/', '--')}"
        places += sorted(folder.glob("snapshots/*"))
    for place in places:
        if (place / "config.json").exists():
            return place
    raise PhikitError(f"no model {name!r} on this machine", f"phikit fetch {name}")


def _hub_cache() -> Path:
    """Where the hub's client keeps what it fetches (HF_HOME); without it, where it would."""
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError:
        return Path.home() / ".cache" / "huggingface" / "hub"
    return Path(HF_HUB_CACHE)


def _start_size(settings: StartSettings) -> Estimate:
    from phikit.models.family import find

    member = find(settings.model)
    shape = member.config if member is not None else None
    return Estimate(
        settings.model,
        seconds=1.0,
        parameters=shape.parameters if shape is not None else 0.0,
        shape=shape,
    )


class PerplexitySettings(Config):
    """How well a model predicts text that it is not being trained on: what it has forgotten."""

    tokens: int = Field(default=20_000, ge=1, description="how many tokens to predict, at most")
    context: int = Field(default=512, ge=8, description="tokens per row")
    precision: Literal["bf16", "f32"] = Field(default="bf16", description="of matrix products")


def run_perplexity(ctx: Context, settings: PerplexitySettings, inputs: Inputs) -> dict[str, Any]:
    """Measures how well a model predicts documents.

    Returns:
        the mean negative log-likelihood of a token in nats, its exponential, and the tokens.

    Raises:
        PhikitError: the context is beyond the model.
    """
    import torch

    from phikit.data.pack import Batches, pack
    from phikit.records import Document, iter_records
    from phikit.train.fast import fast_layers
    from phikit.train.fitting import check_length
    from phikit.train.held import weights_held
    from phikit.train.loop import autocast
    from phikit.train.models import load_model, load_tokenizer, pad_id
    from phikit.train.objectives.next_token import NextToken

    model, tokenizer = load_model(inputs["model"]).eval(), load_tokenizer(inputs["model"])
    check_length(settings.context, model.config, "train.perplexity: context", "lower it")
    examples: list[Any] = []
    left = settings.tokens
    for document in iter_records(inputs["documents"] / "documents.parquet", Document):
        ids = tokenizer.encode(document.text)[: left + 1]
        examples.append((ids, None))
        left -= len(ids) - 1
        if left <= 0:
            break
    rows = pack([e for e in examples if len(e[0]) > 1], settings.context, pad_id(model))
    objective = NextToken(Batches(rows, 4, ctx.seed))
    nll, trained = 0.0, 0.0
    with (
        torch.no_grad(), fast_layers(model), autocast(model, settings.precision), weights_held()
    ):  # fmt: skip
        for step in range(max(1, len(rows) // 4)):
            batch = objective.draw(step)
            nll += sum(float(objective.loss(model, micro).total) for micro in batch.micros)
            trained += batch.weight
            ctx.progress.update(step + 1, max(1, len(rows) // 4), nll=nll / trained)
    mean = nll / trained
    return {"nll": round(mean, 5), "perplexity": round(math.exp(mean), 3), "tokens": int(trained)}


STAGES: list[Stage[Any]] = [
    Stage(
        "train.start", StartSettings, run_start, (),
        resumable=True, estimate=_start_size, help="begin with a published model",
    ),
    Stage(
        "train.perplexity", PerplexitySettings, run_perplexity, ("model", "documents"),
        estimate=lambda s: Estimate(f"{s.tokens:,} tokens", passes=0.0, trained=s.tokens / 3),
        help="how well a model predicts ordinary text, to see what it forgets",
    ),
]  # fmt: skip
