"""What training or serving a model takes: memory, operations, time, money.

Estimates from shapes and from the figures of a GPU. Which part of the peak a training reaches is
either stated or estimated by `throughput`; what an hour costs is a setting.
"""

from __future__ import annotations

from dataclasses import dataclass

from phikit.errors import PhikitError, did_you_mean
from phikit.models.gpus import Gpu
from phikit.models.sizes import BF16, PRECISIONS, Plannable, sizes
from phikit.models.throughput import RECOMPUTED, Setting, step

DAY = 86_400

# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """A training run as it would be. Memory in bytes per device, `cost` in the price's currency.

    Attributes:
        utilisation: the useful part of the bf16 peak (MFU), stated or estimated.
        state: weights, gradients and Adam's two moments in f32, sharded over the devices.
        gathered: bf16 weights of two layers, the one at work and the next, and of the embedding
            and the head.
        activations: what is kept of each sequence for the backward pass.
    """

    flops_per_token: float
    flops: float
    utilisation: float
    seconds: float
    tokens_per_second_per_gpu: float
    cost: float
    state: float
    gathered: float
    activations: float

    @property
    def memory(self) -> float:
        """Bytes on each GPU."""
        return self.state + self.gathered + self.activations


def training(
    config: Plannable,
    gpu: Gpu,
    setting: Setting,
    tokens: float,
    price: float,
    utilisation: float | None = None,
) -> Training:
    """Training with fully sharded data parallelism and bf16 products.

    operations/token = 3 × (2 × weights that multiply + attention's to half of the context): forward
    once and backward twice, a position attending to half of the context on average. Recomputation
    is not counted, so `utilisation` is the useful part of the peak (MFU).

    activations = tokens × (what is kept + working set of one layer with its gradients), the loss
    computed in chunks. Kept are the layers' inputs, and of the inputs and outputs of every product
    the part that is not computed again.

    Args:
        tokens: trained on in all.
        price: of one GPU for one hour.
        utilisation: part of the peak, 0 to 1; estimated from the setting when left out.
    """
    size = sizes(config)
    per_token = 3 * config.flops_per_token(setting.context // 2)
    if utilisation is None:
        utilisation = step(config, gpu, setting).utilisation(gpu)
    seconds = per_token * tokens / (setting.gpus * gpu.peak * utilisation)
    kept = (1 - RECOMPUTED[setting.recompute]) * size.activations + size.hidden * size.layers
    working = 2 * (size.activations / size.layers)
    held = setting.sequences * setting.context / (setting.tensor * setting.context_parallel)
    group = setting.tensor * setting.pipeline
    return Training(
        flops_per_token=per_token,
        flops=per_token * tokens,
        utilisation=utilisation,
        seconds=seconds,
        tokens_per_second_per_gpu=tokens / seconds / setting.gpus,
        cost=seconds / 3600 * setting.gpus * price,
        state=16 * size.parameters / setting.gpus,
        gathered=BF16 * (2 * size.matrices / size.layers + size.embedding) / group
        if setting.gpus > 1
        else BF16 * size.parameters,
        activations=BF16 * held * (kept + working),
    )


# --- serving -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Serving:
    """Decoding by one replica on `gpus` devices. Memory in bytes per device.

    Attributes:
        sequences: at once, as many as fit or as were asked for.
        step_seconds: for one token of every sequence.
        cost_per_million: output tokens, in the price's currency.
    """

    weights: float
    cache_per_sequence: float
    sequences: int
    fitting: int
    step_seconds: float
    tokens_per_second: float
    prefill_seconds: float
    cost_per_million: float


def serving(
    config: Plannable,
    gpu: Gpu,
    gpus: int,
    context: int,
    precision: str,
    utilisation: float,
    price: float,
    sequences: int | None = None,
) -> Serving:
    """Weights and cache split evenly over the devices (tensor parallelism).

    A step reads all weights once and every sequence's cache, half as long as `context`; it takes
    the longer of that, at `utilisation` of the bandwidth, and of its operations, at `utilisation`
    of the peak. A tenth of the memory is left for everything else. Prefill is `context` tokens of
    one sequence.

    Raises:
        PhikitError: the precision is not known; the weights, or the sequences, do not fit.
    """
    if precision not in PRECISIONS:
        raise PhikitError(
            f"no precision is called {precision!r}", did_you_mean(precision, PRECISIONS)
        )
    size = sizes(config)
    weights = size.weight_bytes(precision) / gpus
    per_sequence = config.cache_bytes(context) / gpus
    room = 0.9 * gpu.memory - weights
    fitting = int(room // per_sequence)
    if fitting < (sequences or 1):
        raise PhikitError(
            f"{sequences or 1} sequences of {context:,} tokens do not fit: a {gpu.name} has "
            f"{gpu.memory / 1e9:.0f} GB, the weights take {weights / 1e9:.1f} and each sequence "
            f"{per_sequence / 1e9:.2f} GB of each of the {gpus}",
            "take more GPUs, fewer bits, a shorter context or fewer sequences",
        )
    running = sequences or fitting
    read = (weights + running * config.cache_bytes(context // 2) / gpus) / gpu.bandwidth
    computed = running * config.flops_per_token(context // 2) / (gpus * gpu.peak)
    took = max(read, computed) / utilisation
    prefill = context * config.flops_per_token(context // 2) / (gpus * gpu.peak * utilisation)
    return Serving(
        weights=weights,
        cache_per_sequence=per_sequence,
        sequences=running,
        fitting=fitting,
        step_seconds=took,
        tokens_per_second=running / took,
        prefill_seconds=prefill,
        cost_per_million=took / running * 1e6 / 3600 * gpus * price,
    )


# --- as text -------------------------------------------------------------------------------------


def training_text(plan: Training, gpu: Gpu, gpus: int, tokens: float) -> str:
    """The plan as the lines that `phikit plan` prints."""
    fits = "fits" if plan.memory < 0.95 * gpu.memory else "does not fit"
    parts = ((plan.state, "state"), (plan.gathered, "gathered"), (plan.activations, "activations"))
    return "\n".join(
        [
            f"training on {tokens:.3g} tokens, {gpus:,} × {gpu.name}, "
            f"{plan.utilisation:.1%} of the bf16 peak",
            f"  operations  {plan.flops_per_token:.3g} per token, {plan.flops:.3g} in all",
            f"  time        {plan.seconds / DAY:.2f} days, "
            f"{plan.tokens_per_second_per_gpu:,.0f} tokens/s per GPU",
            f"  cost        {plan.cost:,.0f} for {gpus * plan.seconds / 3600:,.0f} GPU hours",
            f"  memory      {plan.memory / 1e9:.1f} GB per GPU: "
            + ", ".join(f"{size / 1e9:.1f} {name}" for size, name in parts)
            + f"; {fits} in {gpu.memory / 1e9:.0f}",
        ]
    )


def serving_text(plan: Serving, gpu: Gpu, gpus: int, context: int, precision: str) -> str:
    """The plan as the lines that `phikit plan` prints."""
    return "\n".join(
        [
            f"serving in {precision}, {gpus:,} × {gpu.name}, contexts of {context:,} tokens",
            f"  memory      {plan.weights / 1e9:.1f} GB of weights and "
            f"{plan.cache_per_sequence / 1e9:.2f} GB of cache per sequence on each GPU; "
            f"{plan.fitting:,} sequences fit",
            f"  speed       {plan.tokens_per_second:,.0f} tokens/s at {plan.sequences:,} "
            f"sequences, {1 / plan.step_seconds:,.0f} each; {plan.prefill_seconds:.2f} s to read "
            "a full prompt",
            f"  cost        {plan.cost_per_million:.3g} per million output tokens",
        ]
    )
