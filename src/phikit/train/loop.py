"""The one training loop: every objective, every stage.

The loop owns the weights' way from step to step: gradients, clipping, the learning rate, what to
do when a loss is not finite, checkpoints, metrics. What a batch is and what is minimised is the
objective's. A loss is a *sum*; the loop divides by the step's weight (its trained tokens, or its
pairs) over all microbatches, so how a batch is cut changes nothing.

Whatever happens, a killed run goes on to the bit-identical weights and metrics: the state is
explicit and saved whole, and nothing that a clock says reaches it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.checkpoint import checkpoint

from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.lanes import Lanes
from phikit.stage import Context
from phikit.train import parallel, tensors
from phikit.train.adapters import draws
from phikit.train.fast import decoder_layers, embedding, layer_forward
from phikit.train.gradients import added_up
from phikit.train.held import weights_held
from phikit.train.optim import Optimiser
from phikit.train.rows import Rows, peak_mib
from phikit.train.schedules import factor
from phikit.train.settings import TrainSettings
from phikit.train.state import Checkpoints, State

M = TypeVar("M")


@dataclass
class StepBatch(Generic[M]):
    """What one step trains on.

    Attributes:
        micros: the microbatches.
        weight: what the summed loss is divided by, over all microbatches.
        tokens: model tokens that pass through the model, for rates and costs.
        context: mean number of positions a token attends to, for FLOPs.
        name: which data this is, for the message when its loss is not finite;
        ids: the ids of all of it, for the step's row then.
        generated: tokens sampled to make the batch.
        metrics: goes into the step's row as it is.

    A step whose batch has no microbatches leaves the weights as they are.
    """

    micros: list[M]
    weight: float
    tokens: int
    context: float
    name: str
    ids: Callable[[], Sequence[str]] = tuple
    generated: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Loss:
    """Sums over a microbatch: the loss to differentiate, and metrics (divided like the loss)."""

    total: Tensor
    sums: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol[M]):
    """Batch → loss and metrics. The batches' own position is its state."""

    def draw(self, step: int) -> StepBatch[M]:
        """The batch of this step, cut into microbatches; moves the position on."""
        ...

    def loss(self, model: Decoder, micro: M) -> Loss:
        """The loss of one microbatch, summed and not yet divided by the step's weight."""
        ...

    def state(self) -> dict[str, Any]:
        """Where the batches stand, as JSON: a checkpoint keeps it."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes to where `state` was."""
        ...


@dataclass
class _Counters:
    tokens: int = 0
    generated: int = 0
    flops: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


def train(
    ctx: Context, model: Decoder, objective: Objective[M], settings: TrainSettings, steps: int
) -> dict[str, Any]:
    """Trains `model` in place for `steps` steps, going on from the last checkpoint if there is one.

    Returns:
        What the run took: steps, tokens, first and last loss, rate, peak memory.

    Raises:
        PhikitError: so many steps are too few for the schedule; losses were not finite
            `settings.bad_steps` times in a row: names the batch.
    """
    settings.check_schedule(steps)
    torch.manual_seed(ctx.seed)
    model.train().float()
    processes = parallel.Processes.of(model, settings.parallel)
    if processes.mesh is not None:
        parallel.shard(model, processes)
    optimiser = Optimiser(model, settings.optimiser)
    checkpoints = Checkpoints(
        ctx.dir / "checkpoints", settings.keep_checkpoints, settings.checkpoint_in_background
    )
    counters = _Counters()
    start = 0
    ways = tensors.parts(model), tensors.ways(model)
    if (saved := checkpoints.latest(_like(model, optimiser), *ways)) is not None:
        start = saved.step
        _restore(model, optimiser, objective, saved, str(checkpoints.folder))
        counters = _Counters(**saved.counters)  # type: ignore[arg-type]
    ctx.metrics.rewrite([row for row in ctx.metrics.rows if row["step"] <= start])
    _add_cost(ctx, counters)
    track = settings.track if parallel.rank() == 0 else ()
    rows = Rows(
        ctx, steps, counters.tokens, counters.flops, settings.precision,
        model.lm_head.weight.device, track, start,
    )  # fmt: skip
    # lanes would draw dropout from one stream in an order that the clock decides
    lanes = Lanes(1 if draws(model) else parallel.lanes(model.config.parameters, ctx.threads))
    with _prepared(model, settings), lanes, rows.trackers, checkpoints:
        for step in range(start, steps):
            row = _step(
                model, optimiser, objective, settings, step, steps, counters, lanes, processes,
                ctx.seed,
            )  # fmt: skip
            rows.add(row, counters.tokens, counters.flops)
            _add_cost(ctx, counters)
            if counters.skipped_in_a_row >= settings.bad_steps:
                rows.flush()
                raise PhikitError(
                    f"the loss was not finite in {counters.skipped_in_a_row} steps in a row, "
                    f"the last one step {step + 1} ({row['batch']})",
                    "lower the learning rate, lengthen the warm-up, or look at that data: the rows "
                    "without a loss in metrics.jsonl have its ids",
                )
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == steps:
                rows.flush()
                checkpoints.save(_state(model, optimiser, objective, step + 1, counters))
    model.eval()
    return summary(ctx, rows.tokens_per_s())


def summary(ctx: Context, tokens_per_s: float) -> dict[str, Any]:
    """What a finished run says of itself, from its metrics."""
    losses = [row["loss"] for row in ctx.metrics.rows if row["loss"] is not None]
    return {
        "steps": len(ctx.metrics.rows),
        "tokens": sum(row["tokens"] for row in ctx.metrics.rows),
        "loss_first": losses[0] if losses else None,
        "loss_last": losses[-1] if losses else None,
        "skipped_steps": len(ctx.metrics.rows) - len(losses),
        "tokens_per_s": round(tokens_per_s, 1),
        "peak_memory_mib": peak_mib(),
    }


def _step(
    model: Decoder,
    optimiser: Optimiser,
    objective: Objective[M],
    settings: TrainSettings,
    step: int,
    steps: int,
    counters: _Counters,
    lanes: Lanes,
    processes: parallel.Processes,
    seed: int,
) -> dict[str, Any]:
    """One step; returns its row of metrics. The weights are left alone if it is not finite."""
    with weights_held():
        batch = objective.draw(step)
        optimiser.zero_grad()
        stream = f"{seed}/dropout/{step}"
        sums = _gradients(model, objective, settings, batch, lanes, processes, stream)
    grad_norm = lanes.run(optimiser.clip_grads) if batch.micros else 0.0
    counters.tokens += batch.tokens
    counters.generated += batch.generated
    passes = 3 * batch.tokens + batch.generated  # backward costs twice as much as forward
    counters.flops += passes * model.config.flops_per_token(round(batch.context))
    share = factor(
        settings.schedule, step, steps, settings.warmup_steps(steps),
        settings.decay_share, settings.lr_floor,
    )  # fmt: skip
    lr = settings.lr * share
    row: dict[str, Any] = {"step": step + 1}
    row |= {name: value / batch.weight for name, value in sums.items()} or {"loss": 0.0}
    row |= {"lr": lr, "grad_norm": grad_norm, "tokens": batch.tokens, **batch.metrics}
    if math.isfinite(row["loss"]) and math.isfinite(grad_norm):
        if batch.micros:
            optimiser.step(lr, (settings.optimiser.muon_lr or settings.lr) * share, lanes)
        counters.skipped_in_a_row = 0
        return row
    counters.skipped += 1
    counters.skipped_in_a_row += 1
    row = {k: v if math.isfinite(v) else None for k, v in row.items()}
    return row | {"loss": None, "batch": batch.name, "ids": list(batch.ids())}


def _gradients(
    model: Decoder,
    objective: Objective[M],
    settings: TrainSettings,
    batch: StepBatch[M],
    lanes: Lanes,
    processes: parallel.Processes,
    stream: str,
) -> dict[str, float]:
    """Adds the batch's gradients to the parameters; returns the summed loss and metrics.

    Microbatches go through the model side by side when there are lanes for them, and are added up
    in their own order either way. Dropout draws from `stream` and the microbatch's number, so that
    it is the same whichever process has the microbatch, and after a restart.
    """
    sums: dict[str, float] = {}

    def count(loss: Loss, counts: float = 1.0) -> None:
        for name, value in {"loss": loss.total.detach(), **loss.sums}.items():
            sums[name] = sums.get(name, 0.0) + counts * float(value)

    if lanes.count == 1:
        alone = parallel.world() == 1
        slope = float(torch.ones(()) / batch.weight)  # as the division's gradient is computed
        with autocast(model, settings.precision), added_up(slope, in_place=alone):
            for (number, micro), counts in processes.share(list(enumerate(batch.micros))):
                if draws(model):
                    digest = hashlib.blake2b(f"{stream}/{number}".encode(), digest_size=8).digest()
                    torch.manual_seed(int.from_bytes(digest))
                loss = objective.loss(model, micro)
                with torch.autocast(loss.total.device.type, enabled=False):
                    (loss.total * counts / batch.weight).backward()
                count(loss, counts)
        return processes.add_up(sums)

    parameters = [p for _, p in trained(model)]

    def one(micro: M) -> tuple[Loss, tuple[Tensor | None, ...]]:
        with autocast(model, settings.precision):
            loss = objective.loss(model, micro)
        return loss, torch.autograd.grad(loss.total / batch.weight, parameters, allow_unused=True)

    for start in range(0, len(batch.micros), lanes.count):
        for loss, grads in lanes.map(one, batch.micros[start : start + lanes.count]):
            count(loss)
            for p, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    p.grad = grad if p.grad is None else p.grad.add_(grad)
    return sums


def trained(model: Decoder) -> Iterator[tuple[str, Parameter]]:
    """The parameters that training changes; the others are the input model's."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def autocast(model: Decoder, precision: str) -> torch.autocast:
    """Products in bfloat16 when the settings say so.

    Copies of the weights are kept within it, unless the weights are sliced to save memory.
    """
    device = next(model.parameters()).device.type
    return torch.autocast(
        device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=parallel.world() == 1
    )


@contextlib.contextmanager
def _prepared(model: Decoder, settings: TrainSettings) -> Iterator[None]:
    """Applies what only changes speed and memory from outside, and takes it off again."""
    layers: list[Any] = decoder_layers(model)
    embed: Any = model.model.embed_tokens
    embed.forward = functools.partial(embedding, embed)
    for layer in layers:
        if settings.compile:
            layer.compile()
        else:
            layer.forward = functools.partial(layer_forward, layer)
        if settings.recompute:
            layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        embed.__dict__.pop("forward", None)
        for layer in layers:
            layer.__dict__.pop("forward", None)
            layer._compiled_call_impl = None


def _state(
    model: Decoder,
    optimiser: Optimiser,
    objective: Objective[M],
    step: int,
    counters: _Counters,
) -> State:
    weights = {f"model.{n}": p for n, p in trained(model)}
    moments = {f"optimiser.{n}": t for n, t in optimiser.state().items()}
    return State(
        step, objective.state(), vars(counters).copy(), weights | moments, tensors.ways(model)
    )


def _like(model: Decoder, optimiser: Optimiser) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {f"model.{n}": p for n, p in trained(model)}
    return weights | {f"optimiser.{n}": t for n, t in optimiser.like().items()}


@torch.no_grad()
def _restore(
    model: Decoder, optimiser: Optimiser, objective: Objective[M], saved: State, where: str
) -> None:
    for name, p in trained(model):
        held = saved.tensors.get(f"model.{name}")
        if held is None or held.shape != p.shape:
            raise PhikitError(
                f"{where}: the checkpoint's {name} does not fit the model",
                "it was written by another run: remove it to train anew",
            )
        p.copy_(held)
    head = "optimiser."
    moments = {n[len(head) :]: t for n, t in saved.tensors.items() if n.startswith(head)}
    optimiser.load_state(moments, where)
    objective.load_state(saved.objective)


def _add_cost(ctx: Context, counters: _Counters) -> None:
    ctx.cost.tokens_trained = counters.tokens
    ctx.cost.tokens_generated = counters.generated
    ctx.cost.flops = counters.flops
