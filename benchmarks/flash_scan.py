"""What phi-4-mini-flash's parts cost at the released widths, beside what they must cost.

- The scan of a Mamba layer, forward and with its backward pass, beside the layer's own matrix
  products on the same tokens, bfloat16 (goal: at most 3 times their time).
- Attention of a decoding step to the one full cache, as read rate beside the rate at which this
  machine reads memory.

    python benchmarks/flash_scan.py [--tokens 1024] [--rows 8] [--context 10240] [--repeats 7]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from phikit.models.flash.config import PHI_4_MINI_FLASH as CONFIG
from phikit.models.flash.layers import Mamba
from phikit.models.flash.scan import selective_scan
from phikit.models.flash.state import SharedKV

SCAN_GOAL = 3.0  # times the products
READ_GOAL = 0.5  # of the machine's read rate


def interleaved(repeats: int, *works: Callable[[], object]) -> list[float]:
    """The median seconds of each, taken in turns, so that a busy neighbour hits all alike."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, found in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in times]


def mamba() -> Mamba:
    """A layer's mixer with random weights."""
    layer = Mamba(CONFIG)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0.0, 0.02)
        layer.A_log.copy_(torch.arange(1, CONFIG.state_size + 1).log().expand_as(layer.A_log))
        layer.dt_proj.bias.fill_(-4.6)  # time steps of about 0.01
    return layer.bfloat16()


def products(layer: Mamba, tokens: int, backward: bool) -> Callable[[], object]:
    """All matrix products of the layer, each on inputs of its own."""
    linears = (layer.in_proj, layer.x_proj, layer.dt_proj, layer.out_proj)
    inputs = [
        torch.randn(tokens, m.in_features, dtype=torch.bfloat16, requires_grad=backward)
        for m in linears
    ]
    grads = [torch.randn(tokens, m.out_features, dtype=torch.bfloat16) for m in linears]

    def run() -> None:
        for module, x, grad in zip(linears, inputs, grads, strict=True):
            with torch.set_grad_enabled(backward):
                y = torch.nn.functional.linear(x, module.weight)
            if backward:
                torch.autograd.grad(y, (x, module.weight), grad)

    return run


def scan(layer: Mamba, tokens: int, backward: bool) -> Callable[[], object]:
    """The scan alone, from the convolution's output to y."""
    i, n = CONFIG.inner_size, CONFIG.state_size

    def random(width: int) -> Tensor:
        return torch.randn(1, tokens, width, dtype=torch.bfloat16, requires_grad=backward)

    x, delta, b, c = random(i), random(i), random(n), random(n)
    grad = torch.randn(1, tokens, i, dtype=torch.bfloat16)
    rates = layer.rates().detach().requires_grad_(backward)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            y, _ = selective_scan(x, delta, rates, b, c, layer.D, layer.dt_proj.bias)
        if backward:
            torch.autograd.grad(y, (x, delta, rates, b, c, layer.D, layer.dt_proj.bias), grad)

    return run


def cache_reads(rows: int, context: int) -> tuple[Callable[[], object], int]:
    """One layer's attention of a step to a full cache, and the bytes that it must read."""
    cache = SharedKV(CONFIG, torch.bfloat16, torch.device("cpu"))
    cache.reserve(rows, context)
    for k, v in cache.pieces:
        k.normal_()
        v.normal_()
    e = CONFIG.kv_heads
    q = torch.randn(rows, e, CONFIG.heads // e, CONFIG.head_dim, dtype=torch.bfloat16)
    length = torch.full((rows,), context)
    size = 4 * rows * context * e * CONFIG.head_dim
    return lambda: cache.attend(None, q, length), size


def memory_rate() -> Callable[[], object]:
    """Reads 1 GiB."""
    block = torch.ones(1 << 28, dtype=torch.float32)
    return lambda: block.sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--context", type=int, default=10_240)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(0)
    layer = mamba()
    rows = []
    print(f"{'':34}{'ours':>12}{'beside':>12}{'ratio':>8}{'goal':>8}")
    for name, backward in (("scan forward, µs/token", False), ("scan with backward", True)):
        works = (scan(layer, args.tokens, backward), products(layer, args.tokens, backward))
        ours, peer = (s / args.tokens * 1e6 for s in interleaved(args.repeats, *works))
        rows.append(_row(name, ours, peer, SCAN_GOAL, ours <= SCAN_GOAL * peer))
    read, size = cache_reads(args.rows, args.context)
    ours, peer = interleaved(args.repeats, read, memory_rate())
    rate, limit = size / ours / 1e9, 2**30 / peer / 1e9
    rows.append(
        _row("cache read by a step, GB/s", rate, limit, READ_GOAL, rate >= READ_GOAL * limit)
    )
    print(json.dumps({"bench": "flash_scan", "rows": rows}))


def _row(name: str, ours: float, peer: float, goal: float, met: bool) -> dict[str, object]:
    ratio = ours / peer
    print(
        f"{name:34}{ours:12.1f}{peer:12.1f}{ratio:8.2f}{goal:8.2f}  {'met' if met else 'not met'}"
    )
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "goal": goal, "met": met}


if __name__ == "__main__":
    main()
