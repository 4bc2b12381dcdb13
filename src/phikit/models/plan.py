"""What training or serving a dense decoder takes: memory, operations, time, money.

Estimates from shapes and from the figures of a GPU; what cannot be derived (which part of the peak
a real run reaches, what an hour costs) is a setting with its default stated.
"""

from __future__ import annotations

from dataclasses import dataclass

from phikit.errors import PhikitError, did_you_mean
from phikit.models.decoder_config import DecoderConfig
from phikit.models.sizes import BF16, PRECISIONS, sizes

DAY = 86_400


@dataclass(frozen=True, slots=True)
class Gpu:
    """Dense bf16 peak in operations per second, memory in bytes, memory bandwidth in bytes/s."""

    name: str
    peak: float
    memory: float
    bandwidth: float


#: Vendor figures of the SXM modules, without sparsity.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312e12, 80e9, 2.039e12),
        Gpu("h100", 989e12, 80e9, 3.35e12),
        Gpu("h200", 989e12, 141e9, 4.8e12),
        Gpu("b200", 2250e12, 180e9, 7.7e12),
    )
}


def gpu_named(name: str) -> Gpu:
    """Raises PhikitError when the GPU is not known."""
    if name.lower() not in GPUS:
        raise PhikitError(f"no figures for the GPU {name!r}", did_you_mean(name.lower(), GPUS))
    return GPUS[name.lower()]


# --- training ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Training:
    """A training run as it would be. Memory in bytes per device, `cost` in the price's currency.

    Attributes:
        state: weights, gradients and Adam's two moments in f32, sharded over the devices.
        gathered: bf16 weights of two layers, the one at work and the next, and of the embedding
            and the head.
        activations: what is kept of each sequence when every layer is computed again backwards.
    """

    flops_per_token: float
    flops: float
    seconds: float
    tokens_per_second_per_gpu: float
    cost: float
    state: float
    gathered: float
    activations: float

    @property
    def memory(self) -> float:
        return self.state + self.gathered + self.activations


def training(
    config: DecoderConfig,
    gpu: Gpu,
    gpus: int,
    tokens: float,
    context: int,
    utilisation: float,
    price: float,
    sequences: int = 1,
) -> Training:
    """Training with fully sharded data parallelism, bf16 products and activation recomputation.

    operations/token = 3 × (2 × weights that multiply + 4 × layers × heads × head size × context/2):
    forward once and backward twice, a position attending to half of the context on average.
    Recomputation is not counted, so `utilisation` is the useful part of the peak (MFU).

    activations = sequences × context × (width × layers × 2 bytes + working set of one layer:
    2 bytes × (4 × width + q/k/v + 3 × FFN) × 2 for its gradients), the loss computed in chunks.

    Args:
        tokens: trained on in all.
        context: tokens per sequence.
        utilisation: part of the peak, 0 to 1.
        price: of one GPU for one hour.
        sequences: per device and step.
    """
    size, d = sizes(config), config.hidden_size
    per_token = 3 * config.flops_per_token(context // 2)
    flops = per_token * tokens
    seconds = flops / (gpus * gpu.peak * utilisation)
    layer = size.matrices / config.layers
    qkv = (config.heads + 2 * config.kv_heads) * config.head_dim
    working = 2 * BF16 * (4 * d + qkv + 3 * config.intermediate_size)
    return Training(
        flops_per_token=per_token,
        flops=flops,
        seconds=seconds,
        tokens_per_second_per_gpu=tokens / seconds / gpus,
        cost=seconds / 3600 * gpus * price,
        state=16 * size.parameters / gpus,
        gathered=BF16 * (2 * layer + size.embedding) if gpus > 1 else BF16 * size.parameters,
        activations=sequences * context * (BF16 * d * config.layers + working),
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
    config: DecoderConfig,
    gpu: Gpu,
    gpus: int,
    context: int,
    precision: str,
    utilisation: float,
    price: float,
    sequences: int | None = None,
) -> Serving:
    """Weights and cache split evenly over the devices (tensor parallelism).

    A step reads all weights once and half of every full cache (`context` positions); it takes the
    longer of that, at `utilisation` of the bandwidth, and of its operations, at `utilisation` of
    the peak. A tenth of the memory is left for everything else. Prefill is `context` tokens of one
    sequence.

    Raises:
        PhikitError: the precision is not known; the weights, or the sequences, do not fit.
    """
    if precision not in PRECISIONS:
        raise PhikitError(
            f"no precision is called {precision!r}", did_you_mean(precision, PRECISIONS)
        )
    size = sizes(config)
    weights = size.weight_bytes(precision) / gpus
    per_sequence = size.cache_bytes_per_token * context / gpus
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
    read = (weights + running * per_sequence / 2) / gpu.bandwidth
    computed = running * config.flops_per_token(context // 2) / (gpus * gpu.peak)
    step = max(read, computed) / utilisation
    prefill = context * config.flops_per_token(context // 2) / (gpus * gpu.peak * utilisation)
    return Serving(
        weights=weights,
        cache_per_sequence=per_sequence,
        sequences=running,
        fitting=fitting,
        step_seconds=step,
        tokens_per_second=running / step,
        prefill_seconds=prefill,
        cost_per_million=step / running * 1e6 / 3600 * gpus * price,
    )


# --- as text -------------------------------------------------------------------------------------


def training_text(plan: Training, gpu: Gpu, gpus: int, tokens: float, utilisation: float) -> str:
    fits = "fits" if plan.memory < 0.95 * gpu.memory else "does not fit"
    parts = ((plan.state, "state"), (plan.gathered, "gathered"), (plan.activations, "activations"))
    return "\n".join(
        [
            f"training on {tokens:.3g} tokens, {gpus:,} × {gpu.name}, "
            f"{utilisation:.1%} of the bf16 peak",
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
