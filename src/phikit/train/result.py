"""What every training stage ends with: the model in its folder, and means of its last steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phikit.models.decoder import Decoder
from phikit.stage import Context
from phikit.train import adapters, loop, parallel
from phikit.train.models import write_model
from phikit.train.settings import TrainSettings
from phikit.train.state import Checkpoints


def finish(
    ctx: Context,
    model: Decoder,
    tokenizer: Path,
    settings: TrainSettings,
    data: Sequence[Path],
    run: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Runs the training unless its model is there already, writes the model, drops checkpoints.

    The model appears in one piece when all is done, so a run that was killed after that has only
    its checkpoints left to remove.

    Args:
        data: the files that the result depends on; all of them are read by the stage anyway.

    Raises:
        PhikitError: a checkpoint is there, and was trained on other data.
    """
    checkpoints = Checkpoints(ctx.dir / "checkpoints", settings.keep_checkpoints)
    if (ctx.dir / "model").is_dir():
        result = loop.summary(ctx, 0.0)
        ctx.cost.tokens_trained = result["tokens"]
    else:
        if parallel.rank() == 0:
            checkpoints.hold_to(data)
        result = run()
        model = parallel.whole(model)
        if parallel.rank() == 0:
            if settings.lora is not None:
                adapters.save(model, settings.lora.name, ctx.dir / "adapter", str(tokenizer))
            write_model(adapters.merged(model), tokenizer, ctx.dir, settings.save_dtype)
    if parallel.rank() == 0:
        checkpoints.remove()
    parallel.barrier()
    return result


def last_steps(ctx: Context, *names: str) -> dict[str, float | None]:
    """Means over the last tenth of the steps."""
    rows = ctx.metrics.rows[-max(1, len(ctx.metrics.rows) // 10) :]
    found = {n: [row[n] for row in rows if row.get(n) is not None] for n in names}
    return {n: round(sum(v) / len(v), 4) if v else None for n, v in found.items()}


def copies(what: str, batch: int, held: int) -> dict[str, float]:
    """How often a step trains on the same, where a batch asks for more than there is."""
    return {f"{what}_copies_per_step": round(batch / held, 2)} if batch > held else {}
