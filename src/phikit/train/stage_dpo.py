"""The stage `train.dpo`: pairs in, a model that prefers what was chosen out.

The heavy imports are inside the functions, so that a recipe is read and checked without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.records import Pair, read_records
from phikit.stage import Context, Estimate, Stage, given
from phikit.train.objectives.dpo_settings import DpoLoss
from phikit.train.objectives.mixing import PairKind, mix
from phikit.train.settings import TrainSettings

if TYPE_CHECKING:
    from phikit.models.decoder_config import DecoderConfig


class DpoSettings(TrainSettings):
    """Preference optimisation on pairs of token ids. phi-4 published the numbers of pairs, but
    neither β nor learning rate nor epochs; mini-reasoning: LR 5e-7, 1 epoch."""

    lr: float = Field(default=5e-7, gt=0, description="peak learning rate")
    loss: DpoLoss = DpoLoss()
    batch_pairs: int = Field(default=64, ge=1, description="pairs per step")
    epochs: float = Field(default=1.0, gt=0, description="passes over the pairs")
    mix: dict[PairKind, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=dict,
        description="shares of kinds of pairs in the whole, {refusal: 0.03}; kinds that are not "
        "named come whole (the report: 1 to 5 % against hallucination and for safety)",
    )
    max_tokens: int | None = Field(
        default=None, ge=2, description="longest prompt with answer; longer pairs are left out"
    )
    micro_tokens: int = Field(
        default=16_384, ge=1, description="tokens computed at once (changes memory, not maths)"
    )
    allow_empty: bool = Field(
        default=False,
        description="with no pair at all, hand the model on as it is; else that is an error. For "
        "recipes whose search may find nothing, with another seed or a small budget",
    )


def run_dpo(ctx: Context, settings: DpoSettings, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Trains a model to prefer the chosen answers of all `pairs` to the rejected ones.

    Returns:
        the training's summary, how many pairs of each kind were used, and the last steps' accuracy
        and margin.

    Raises:
        PhikitError: no pair is usable (and `allow_empty` is off, or there were some), or max_tokens
            or a token id is beyond the model.
    """
    from phikit.models import checkpoint
    from phikit.train import loop, parallel
    from phikit.train.adapters import merged
    from phikit.train.fitting import check_length
    from phikit.train.models import model_files, starting_model, write_model
    from phikit.train.objectives.dpo import Dpo, stored_reference
    from phikit.train.result import copies, finish, last_steps

    model = starting_model(inputs["model"], settings, ctx.seed)
    most = settings.max_tokens or model.config.max_positions
    check_length(most, model.config, "train.dpo: max_tokens", "lower it, or leave it out")
    files = [folder / "pairs.parquet" for folder in given(inputs, "pairs")]
    read = _read_pairs(files, model.config)
    usable = [p for p in read if _usable(p, most)]
    if not read and settings.allow_empty:
        if not (ctx.dir / "model").is_dir():  # else it was killed after writing it
            write_model(merged(model), inputs["model"] / "model", ctx.dir, settings.save_dtype)
        return {"note": "no pairs: unchanged", "steps": 0, "tokens": 0, "pairs": {}, "left_out": 0}
    if not usable:
        raise PhikitError(
            f"train.dpo: none of {len(read)} pairs has two different answers within {most} tokens",
            "raise max_tokens, or look at what the stages before it made"
            if read
            else "look at what the stages before it made; allow_empty: true goes on without",
        )
    mixed = mix(usable, settings.mix, ctx.seed)
    pairs = mixed.pairs
    steps = settings.steps or math.ceil(settings.epochs * len(pairs) / settings.batch_pairs)

    def run() -> dict[str, Any]:
        with parallel.first_one_first():
            reference_P2 = stored_reference(
                ctx.dir, checkpoint.weight_files(inputs["model"] / "model"),
                model, pairs, settings.micro_tokens, settings.precision,
            )  # fmt: skip
        objective = Dpo(
            pairs, reference_P2, settings.loss,
            settings.batch_pairs, settings.micro_tokens, ctx.seed,
            parallel.lanes(model.config.parameters, ctx.threads) * parallel.world(),
        )  # fmt: skip
        return loop.train(ctx, model, objective, settings, steps)

    data = [*files, *model_files(inputs["model"])]
    result = finish(ctx, model, inputs["model"] / "model", settings, data, run)
    return result | {
        "pairs": mixed.counts,
        "unused": mixed.unused,
        "left_out": len(read) - len(usable),
        **copies("pair", settings.batch_pairs, len(pairs)),
        **last_steps(ctx, "accuracy", "margin"),
    }


def _read_pairs(files: Iterable[Path], config: DecoderConfig) -> list[Pair]:
    """
    Raises:
        PhikitError: a pair has token ids that are none of the model's; names it.
    """
    from phikit.train.fitting import check_ids

    read: list[Pair] = []
    for path in files:
        for pair in read_records(path, Pair):
            ids = (*pair.prompt_ids, *pair.chosen_ids, *pair.rejected_ids)
            check_ids(ids, config, f"{path}: pair {pair.id}")
            read.append(pair)
    return read


def _usable(pair: Pair, most: int) -> bool:
    longest = max(len(pair.chosen_ids), len(pair.rejected_ids))
    whole = pair.prompt_ids and pair.chosen_ids and pair.rejected_ids
    return (
        bool(whole)
        and pair.chosen_ids != pair.rejected_ids
        and len(pair.prompt_ids) + longest <= most
    )


def _dpo_size(settings: DpoSettings) -> Estimate:
    amount = f"{settings.steps:,} steps" if settings.steps else f"{settings.epochs:g} epochs"
    longest = settings.max_tokens or 1024  # answers are about half as long
    return Estimate(
        f"{amount} of {settings.batch_pairs} pairs, LR {settings.lr:g}",
        seconds=2.0,
        passes=settings.epochs,
        trained=(settings.steps or 0) * settings.batch_pairs * 2 * longest / 2,
        context=longest,
    )


STAGES: list[Stage[Any]] = [
    Stage(
        "train.dpo", DpoSettings, run_dpo, ("model", "pairs*"),
        resumable=True, estimate=_dpo_size, help="learn preferences between answers or tokens",
    ),
]  # fmt: skip
