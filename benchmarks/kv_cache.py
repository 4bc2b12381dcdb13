"""Keys and values in 8 bits against bfloat16: memory, what is lost, speed at long contexts.

    python benchmarks/kv_cache.py [--threads N] [--rounds N]

Quality: SmolLM2-135M on Python's own documentation, each token's distribution with all keys and
values before it (its own included) read from either cache; perplexity, KL and the likeliest token.
Speed: steps at a context that is filled, not generated; random weights of SmolLM2's shape, and of
phi-4-mini's with 4 of its 32 layers and a small vocabulary, so that what is read is mostly cache.
Both caches take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pydoc_data.topics import topics  # type: ignore[import-untyped]
from statistics import median
from typing import Any

import numpy as np
import shapes
import torch

from phikit.chat.load import load_tokenizer
from phikit.engine.invariant import InvariantRunner
from phikit.engine.native.runner import NativeRunner
from phikit.engine.runner import Rows
from phikit.fetch import resolve
from phikit.memory import keep_freed_memory
from phikit.models.decoder import Decoder
from phikit.models.family import config
from phikit.models.load import load

_TEXTS, _LENGTH, _PIECE = 8, 512, 128


def rows_of(token: np.ndarray, position: np.ndarray, table: np.ndarray) -> Rows:
    still = np.zeros(len(token), np.int64)
    return Rows(token, position, table, still, still - 1)


def distributions(runner: InvariantRunner, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [L, V] of what follows each token."""
    table = np.arange(1, _LENGTH // runner.block_size + 1)[None].repeat(_PIECE, 0)
    lines = []
    for start in range(0, _LENGTH, _PIECE):
        token = np.array(ids[start : start + _PIECE])
        rows = rows_of(token, np.arange(start, start + _PIECE), table)
        lines.append(runner.step(rows).float().log_softmax(-1))
    return torch.cat(lines)


def quality() -> list[dict[str, Any]]:
    directory = resolve("smollm2", say=print)
    model, tokenizer = load(directory), load_tokenizer(directory)
    assert isinstance(model, Decoder)
    ids = tokenizer.encode("\n\n".join(topics[k] for k in sorted(topics)))
    runners = {name: InvariantRunner(model, cache=name) for name in ("", "int8")}
    for runner in runners.values():
        runner.allocate(_LENGTH // runner.block_size + 1)
    kl, same, loss = [], [], {name: [] for name in runners}
    for text in range(_TEXTS):
        part = ids[text * 4 * _LENGTH :][:_LENGTH]
        found = {name: distributions(runner, part) for name, runner in runners.items()}
        target = torch.tensor(part[1:])[:, None]
        for name, logp_LV in found.items():
            loss[name].append(-float(logp_LV[:-1].gather(1, target).mean()))
        a_LV, b_LV = found[""], found["int8"]
        kl.append(float((a_LV.exp() * (a_LV - b_LV)).sum(-1).mean()))
        same.append(float((a_LV.argmax(-1) == b_LV.argmax(-1)).float().mean()))
    wide, narrow = (float(np.exp(np.mean(loss[name]))) for name in ("", "int8"))
    memory = {name: r.block_bytes / r.block_size for name, r in runners.items()}
    return [
        line("bytes of a position, int8 and bf16", memory["int8"], memory[""], None),
        line("perplexity, int8 and bf16", narrow, wide, None),
        line("KL, nats a token", float(np.mean(kl)), None, None),
        line("same likeliest token", float(np.mean(same)), None, None),
    ]


def speed(model: Decoder, name: str, rows: int, length: int, rounds: int) -> dict[str, Any]:
    steps = {}
    for cache in ("", "int8"):
        runner = NativeRunner(model, cache=cache)
        blocks = -(-(length + 1) // runner.block_size)
        runner.allocate(rows * blocks + 1)
        pool = runner.pool
        for store in (t for layer in pool.layers for t in layer):
            store.fill_(1)
        table = np.arange(1, rows * blocks + 1).reshape(rows, blocks)
        steps[cache] = partial(
            runner.step, rows_of(np.full(rows, 5), np.full(rows, length), table)
        )  # fmt: skip
    times: dict[str, list[float]] = {"": [], "int8": []}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for cache, step in steps.items():
                start = time.perf_counter()
                step()
                step()
                times[cache].append((time.perf_counter() - start) / 2)
    a, b = (rows / median(times[cache][1:]) for cache in ("int8", ""))
    return line(f"{name}, {rows} rows at {length}: tokens/s, int8 and bf16", a, b, a / b)


def line(name: str, ours: float, peer: float | None, ratio: float | None) -> dict[str, Any]:
    if ratio is None and peer:
        ratio = ours / peer
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "goal": None, "met": None}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the program does
    found = []
    small = shapes.model(replace(config("smollm2"), max_positions=16384), "bf16")
    mini = replace(config("phi-4-mini"), layers=4, vocab_size=1024)
    wide = shapes.model(mini, "bf16")
    for model, name, rows, length in (
        (small, "SmolLM2", 1, 2048), (small, "SmolLM2", 1, 8192), (small, "SmolLM2", 8, 4096),
        (wide, "mini, 4 layers", 1, 16384), (wide, "mini, 4 layers", 8, 8192),
    ):  # fmt: skip
        found.append(speed(model, name, rows, length, options.rounds))
    with torch.inference_mode():
        found += quality()
    for r in found:
        shown = [f"{v:.4g}" if v is not None else "-" for v in (r["ours"], r["peer"], r["ratio"])]
        print(f"{r['name']:<56} {' '.join(f'{v:>10}' for v in shown)}")
    print(json.dumps({"bench": "kv-cache", "rows": found}))


if __name__ == "__main__":
    main()
