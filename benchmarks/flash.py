"""Decoding with phi-4-mini-flash beside phi-4-mini: 8 rows at long contexts, int4 weights.

    python benchmarks/flash.py [--contexts 10240 32768] [--rounds 5] [--threads N]

Random weights of the published shapes; caches hold random numbers, not generated ones. Both models
are run by the engine's own runners, a step with its greedy draw, in turns: reading memory, flash,
mini. Of mini's two ways to take a step (all in C, and C between the products) the faster counts.
phi-4-mini's layers share two caches, since memory does not hold eight rows' 32: a layer's is many
times larger than the processor's caches, so it is read from memory again all the same.

The limit of a model is the bytes that a step must read, weights and caches, at the rate at which
this machine read memory in the same run. phi-4-mini's cache is in bfloat16; flash's also in 8 bits.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

import numpy as np
import shapes
import torch

from phikit.engine.base import Sampling
from phikit.engine.flash import FlashRunner
from phikit.engine.native.runner import NativeRunner
from phikit.engine.pool import Pool
from phikit.engine.runner import Rows
from phikit.engine.sampling import Settings, draw
from phikit.memory import keep_freed_memory
from phikit.models.family import config
from phikit.models.flash.config import Kind

ROWS, GOAL = 8, 4.0
_LAYERS = 2  # of phi-4-mini with a cache of their own
_TEMPLATE = 2**22


def fill(store: torch.Tensor) -> None:
    """Random numbers in a cache, touched before anything is timed."""
    generator = torch.Generator().manual_seed(0)
    template = torch.randn(_TEMPLATE, generator=generator)
    if store.dtype == torch.uint8:
        template = template * 32 + 128
    elif store.dim() == 3 and store.dtype == torch.float32:  # scales
        template = template.abs() / 32
    template = template.to(store.dtype)
    flat = store.view(-1)
    for start in range(0, len(flat), _TEMPLATE):
        part = flat[start : start + _TEMPLATE]
        part.copy_(template[: len(part)])


@dataclass
class Subject:
    """A model that is measured: `step` takes one, of `streamed` bytes."""

    name: str
    streamed: int
    step: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        start = time.perf_counter()
        self.step()
        self.seconds.append(time.perf_counter() - start)

    @property
    def rate(self) -> float:
        return ROWS / median(self.seconds)


def rows_of(context: int, block_size: int) -> Rows:
    """Rows at a context's last position."""
    tables = np.arange(1, 1 + ROWS * -(-context // block_size)).reshape(ROWS, -1)
    position, none = np.full(ROWS, context - 1), np.zeros(ROWS, np.int64)
    return Rows(np.arange(100, 100 + ROWS), position, tables, none, np.arange(ROWS))


def steps(runner: Any, rows: Rows) -> Callable[[], object]:
    settings = Settings.of([Sampling(temperature=0)] * ROWS, torch.device("cpu"))
    uniform = torch.zeros(ROWS)
    return lambda: draw(runner.step(rows).float(), settings, uniform)


def flash_subject(name: str, runner: FlashRunner, context: int) -> Subject:
    c, size = runner.config, runner.block_size
    width = -(-context // size)
    runner.allocate(1 + ROWS * width)
    for store in runner.pool.stores:
        fill(store)
    readers, window = len(c.of_kind(Kind.FULL, Kind.CROSS)), len(c.of_kind(Kind.WINDOW))
    per_position = runner.block_bytes / size
    caches = ROWS * context * readers * per_position
    caches += ROWS * window * min(context, c.sliding_window) * 4 * c.kv_heads * c.head_dim
    ssm = runner.states.slots.ssm
    states = 2 * ssm[:, :1].numel() * ssm.element_size() * ROWS  # read and written
    streamed = shapes.streamed_bytes(runner.model) + int(caches) + states
    return Subject(name, streamed, steps(runner, rows_of(context, size)))


def mini_subjects(runner: NativeRunner, context: int) -> list[Subject]:
    c, size = runner.config, runner.block_size
    width = -(-context // size)
    pool = Pool(replace(c, layers=_LAYERS), 1 + ROWS * width, size, runner.dtype, runner.device)
    for store in (*pool.k, *pool.v):
        fill(store)
    pool.layers *= c.layers // _LAYERS
    runner.pool = pool
    caches = ROWS * context * 4 * c.kv_heads * c.head_dim * c.layers
    streamed = shapes.streamed_bytes(runner.model) + caches
    step = steps(runner, rows_of(context, size))

    def between() -> object:
        most, runner.most_rows = runner.most_rows, 0
        try:
            return step()
        finally:
            runner.most_rows = most

    return [Subject("all in C", streamed, step), Subject("C between", streamed, between)]


def read_rate(buffer: torch.Tensor) -> float:
    start = time.perf_counter()
    buffer.sum()
    return buffer.numel() * buffer.element_size() / (time.perf_counter() - start)


def profile(subject: Subject) -> None:
    with torch.profiler.profile() as seen:
        subject.step()
    print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=16))


def measure(
    flash: dict[str, FlashRunner], mini: NativeRunner, context: int, options: Any
) -> list[dict[str, Any]]:
    buffer = torch.ones(2**26, dtype=torch.float32)
    ours = [flash_subject(name, runner, context) for name, runner in flash.items()]
    theirs = mini_subjects(mini, context)
    rates = []
    for subject in (*ours, *theirs):
        subject.step()
    for subject in ours if options.profile else ():
        profile(subject)
    for _ in range(options.rounds):
        rates.append(read_rate(buffer))
        for subject in (*ours, *theirs):
            subject.run()
    rates.append(read_rate(buffer))
    rate = max(rates)
    for subject in (*ours, *theirs):
        limit = ROWS * rate / subject.streamed
        said = f"{subject.streamed / 1e9:.2f} GB at {rate / 1e9:.1f} GB/s allow {limit:.2f}"
        share = subject.rate / limit
        print(
            f"  {subject.name:<20} {subject.rate:7.2f} tokens/s; {said} ({share:.0%})", flush=True
        )
    best = max(theirs, key=lambda s: s.rate)
    return [
        {
            "name": f"{ROWS} rows at {context}: tokens/s, {subject.name} / phi-4-mini, {best.name}",
            "ours": subject.rate, "peer": best.rate, "ratio": subject.rate / best.rate,
            "goal": GOAL, "met": subject.rate / best.rate >= GOAL,
            "limit": ROWS * rate / subject.streamed, "peer_limit": ROWS * rate / best.streamed,
        }
        for subject in ours
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--contexts", type=int, nargs="+", default=[10_240, 32_768])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="of a step of flash's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the program does
    rows = []
    with torch.inference_mode():
        model = shapes.model(config("phi-4-mini-flash"), "int4")
        flash = {
            "flash": FlashRunner(model), "flash, cache in int8": FlashRunner(model, int8_cache=True)
        }  # fmt: skip
        for runner in flash.values():
            runner.states.allocate(ROWS)
            for store in runner.states.slots.tensors():
                fill(store)
        mini = NativeRunner(shapes.model(config("phi-4-mini"), "int4"))
        for context in options.contexts:
            rows += measure(flash, mini, context, options)
            gc.collect()
    for row in rows:
        print(f"{row['name']:<74} {row['ours']:7.2f} {row['peer']:7.2f} {row['ratio']:5.2f} "
              f"goal {row['goal']}, met: {row['met']}")  # fmt: skip
    print(json.dumps({"bench": "flash", "rows": rows}))


if __name__ == "__main__":
    main()
