"""How fast a cluster trains a model: a step's parts, each at the rate of what limits it.

seconds per token and GPU = (matrix products + attention + memory traffic + tensor-parallel
exchange) / share of the pipeline that is busy. The parts:

- products: 6 operations per weight, and what is computed again backwards; float8 for the layers'
  matrices when asked for, the head always in bf16.
- attention: 3.5 times the forward pass (the backward pass makes the scores again), causal.
  Context parallelism whose ranks hold consecutive pieces is as slow as its last rank, which sees
  everything: (2 c − 1) / c of the mean over c ranks.
- memory traffic: every input and output of a product is read and written by the cheap work around
  it, a number of passes; and the optimizer's 28 bytes per weight and step.
- exchange: with tensor parallelism each layer gathers and scatters its activations twice per pass.
- pipeline: m / (m + (stages − 1) / chunks per stage), for m microbatches (1F1B, interleaved).

Sharded data parallelism's traffic runs beside the products and costs nothing until it is the
longer of the two.

The six rates below are properties of the software, calibrated once on what torchtitan published
for Llama 3.1 (benchmarks/llama3_h100_202412_torchtitan.md), where they meet all twenty
throughputs, from 16 to 10,938 tokens/s per GPU, within 15 %. There is no constant for a model, a
GPU or a row of its tables.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from phikit.errors import PhikitError, did_you_mean
from phikit.models.decoder_config import DecoderConfig
from phikit.models.gpus import Gpu
from phikit.models.sizes import BF16, Plannable, sizes

PRODUCTS = 0.60  # of the bf16 peak, in large products
FLOAT8 = 0.48  # of the float8 peak (twice bf16's), with its scaling
ATTENTION = 0.328  # of the bf16 peak, forward and backward
MEMORY = 0.80  # of the bandwidth
PASSES = {"compiled": 17.5, "eager": 27.5}  # over every product's input and output, all three ways
LINK = 0.60  # of the links' bandwidth
ASYNC = 0.60  # of the tensor-parallel exchange stays visible when it is overlapped
OPTIMIZER = 28  # bytes per weight and step: f32 weight and two moments, read and written; gradient

RECOMPUTED = {"none": 0.0, "selective": 0.5, "full": 1.0}  # part of the forward products


@dataclass(frozen=True, slots=True)
class Setting:
    """How a training is spread out and run.

    Attributes:
        gpus: in all; what the degrees below leave over shards the weights and shares the data.
        tensor, pipeline, context_parallel: degrees of the other kinds of parallelism.
        chunks: pieces of the model on each pipeline stage; more than 1 interleaves them.
        microbatches: per step through the pipeline.
        sequences: of each data-parallel rank and step.
        recompute: what of a layer is computed again backwards. "selective": every other product.
    """

    gpus: int
    context: int
    sequences: int = 1
    tensor: int = 1
    pipeline: int = 1
    context_parallel: int = 1
    chunks: int = 1
    microbatches: int = 8
    recompute: str = "full"
    float8: bool = False
    compiled: bool = True
    async_tensor: bool = False

    def __post_init__(self) -> None:
        split = self.tensor * self.pipeline * self.context_parallel
        if self.gpus % split:
            raise PhikitError(
                f"{self.gpus} GPUs cannot be cut into groups of tensor {self.tensor} × pipeline "
                f"{self.pipeline} × context {self.context_parallel}",
                f"take a multiple of {split} GPUs",
            )
        if self.recompute not in RECOMPUTED:
            raise PhikitError(
                f"recompute is {self.recompute!r}", did_you_mean(self.recompute, RECOMPUTED)
            )


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds per token of one GPU's share, by what limits them.

    Attributes:
        sharding: the weights' and gradients' traffic, which counts only where it is longer than
            everything else together.
        busy: part of the time that a pipeline stage works.
        useful_flops: operations per token that training needs, recomputation left out.
    """

    products: float
    attention: float
    memory: float
    exchange: float
    sharding: float
    busy: float
    useful_flops: float

    @property
    def seconds(self) -> float:
        work = self.products + self.attention + self.memory + self.exchange
        return max(work / self.busy, self.sharding)

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return 1 / self.seconds

    def utilisation(self, gpu: Gpu) -> float:
        """Useful operations as a part of the bf16 peak."""
        return self.useful_flops * self.tokens_per_second / gpu.peak


def step(config: Plannable, gpu: Gpu, setting: Setting) -> Step:
    """What one token costs one GPU of the cluster: the whole cluster trains `gpus` times as many.

    The times of the parts are those of the whole model on one GPU. A group of tensor × pipeline
    GPUs takes one part of it each, and context parallelism cuts sequences, so that a token costs
    the cluster the same however it is cut, but for imbalance, exchange and bubbles.
    """
    size = sizes(config)
    again = RECOMPUTED[setting.recompute]
    passes = 2 + (setting.recompute != "none")  # forward, again, backward
    linear = config.flops_per_token(0)
    layers = 2.0 * size.matrices
    seen = config.flops_per_token(setting.context // 2) - linear
    uneven = (2 * setting.context_parallel - 1) / setting.context_parallel
    rate = PRODUCTS * gpu.peak
    inner = FLOAT8 * 2 * gpu.peak if setting.float8 else rate
    traffic = PASSES["compiled" if setting.compiled else "eager"] * passes / 3
    batch = setting.sequences * setting.context / setting.context_parallel
    group = setting.tensor * setting.pipeline
    held = size.parameters / group  # weights of one GPU when they are gathered
    shards = setting.gpus // group
    ring = (setting.tensor - 1) / setting.tensor
    exchanged = 4 * passes * BF16 * size.hidden * size.layers * ring
    link = gpu.link
    if setting.gpus > gpu.node:  # the GPUs of a node that hold the same piece share its networks
        link = min(link, gpu.network * max(1.0, gpu.node / group))
    return Step(
        products=layers * (3 + again) / inner + 3 * (linear - layers) / rate,
        attention=seen * (3.5 + (again == 1)) * uneven / (ATTENTION * gpu.peak),
        memory=(
            BF16 * traffic * size.activations + OPTIMIZER * held / shards / batch * group
        ) / (MEMORY * gpu.bandwidth),
        exchange=exchanged * setting.tensor / (LINK * gpu.link)
        * (ASYNC if setting.async_tensor else 1),
        # gathered forward and backward in bf16, gradients scattered in f32
        sharding=(4 * BF16 * held * (1 - 1 / shards)) / (LINK * link) / batch * group,
        busy=setting.microbatches
        / (setting.microbatches + (setting.pipeline - 1) / setting.chunks),
        useful_flops=3 * config.flops_per_token(setting.context // 2),
    )  # fmt: skip


# --- models that others published throughputs of ----------------------------------------------

_LLAMA_8B = DecoderConfig(
    vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, layers=32, heads=32,
    kv_heads=8, head_dim=128, max_positions=131_072, rope_theta=500_000.0,
    architecture="LlamaForCausalLM",
)  # fmt: skip

#: Known to `phikit plan` besides the family, to hold its estimates against published ones.
YARDSTICKS = {
    "llama-3.1-8b": _LLAMA_8B,
    "llama-3.1-70b": replace(
        _LLAMA_8B, hidden_size=8192, intermediate_size=28_672, layers=80, heads=64
    ),
    "llama-3.1-405b": replace(
        _LLAMA_8B, hidden_size=16_384, intermediate_size=53_248, layers=126, heads=128
    ),
}
