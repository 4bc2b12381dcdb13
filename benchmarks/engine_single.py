"""One stream: tokens per second, and time to the first, beside llama.cpp and the memory's limit.

    python benchmarks/engine_single.py --peers DIR [CASE ...]     cases: see CASES below

Weights are random, of the published shapes; llama.cpp gets the same shape as a llama-architecture
GGUF file (its matrices q, k, v, gate and up are separate; everything is in the one format). DIR
has node-llama-cpp installed; files are written there and deleted. Without --peers only ours is
measured. Ours is what a user gets: `LocalEngine.stream`, greedy, with drawing and Python in the
time. All of a case alternates within one run: reading memory, ours, llama.cpp; the table has
medians, and as the limit the highest rate at which memory was read.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import shapes
import torch
from tables import row, table

from phikit.engine.base import Request, Sampling
from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.pool import zeros
from phikit.memory import give_back_freed_memory, keep_freed_memory
from phikit.models.decoder import Decoder
from phikit.models.family import config

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """`layers`: as many of the model's own, so that both models fit into memory; 0 for all.
    `memory_goal`: GiB; with it the weights are first written to a directory and loaded from it."""

    model: str
    kind: str
    form: str
    prompt: int
    tokens: int
    goal: float | None  # ours / llama.cpp
    limit_goal: float | None  # ours / the memory's limit
    layers: int = 0
    first: bool = False  # the time to the first token is what counts
    memory_goal: float | None = None


CASES = {
    "smollm2-bf16": Case("smollm2", "bf16", "BF16", 200, 64, 1.5, None),
    "smollm2-int8": Case("smollm2", "int8", "Q8_0", 200, 64, 1.5, None),
    "smollm2-int4": Case("smollm2", "int4", "Q4_0", 200, 64, 1.5, None),
    "mini-bf16": Case("phi-4-mini", "bf16", "BF16", 16, 12, 1.0, 0.85, layers=12),
    "mini-int8": Case("phi-4-mini", "int8", "Q8_0", 16, 16, 1.0, 0.85),
    "mini-int4": Case("phi-4-mini", "int4", "Q4_0", 16, 24, 1.0, 0.85),
    "phi4-int4": Case("phi-4", "int4", "", 16, 12, None, 0.75, memory_goal=10.0),
    "mini-first-token": Case("phi-4-mini", "int4", "Q4_0", 4000, 1, 1.3, None, first=True),
}


def read_buffer(count: int) -> torch.Tensor:
    """Float32 in large pages: memory in small ones reads a quarter slower, and is no limit."""
    return zeros((count,), torch.float32, torch.device("cpu")).fill_(1.0)


def read_rate(buffer: torch.Tensor) -> float:
    """Bytes per second at which memory is read, by all threads."""
    start = time.perf_counter()
    buffer.sum()
    return buffer.numel() * buffer.element_size() / (time.perf_counter() - start)


def ours(model: Decoder, case: Case) -> tuple[float, float]:
    """Seconds to the first token, and for the `tokens` after it."""
    ids = tuple(100 + i * 37 % 9000 for i in range(case.prompt))
    stream = LocalEngine(model, max_batch=1).stream(
        Request(ids, Sampling(temperature=0, max_tokens=case.tokens + 1))
    )
    start = time.perf_counter()
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    return first - start, time.perf_counter() - first


@contextmanager
def llama_cpp(case: Case, shape: Any, peers: Path | None) -> Iterator[Any]:
    """A function like `ours` for llama.cpp; None when it is not to be measured."""
    if peers is None or not case.form:
        yield None
        return
    path = (peers / f"random-{case.model}-{case.form}.gguf").resolve()
    shapes.write_gguf(path, shape, case.form)
    process = subprocess.Popen(
        ["node", str(_HERE / "llama_cpp.mjs"), str(path), str(torch.get_num_threads()),
         str(case.prompt + case.tokens + 64)],
        cwd=peers, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    try:
        json.loads(process.stdout.readline())

        def measure() -> tuple[float, float]:
            process.stdin.write(json.dumps({"prompt": case.prompt, "tokens": case.tokens}) + "\n")
            process.stdin.flush()
            said = json.loads(process.stdout.readline())
            return said["prefill"], said["decode"]

        yield measure
    finally:
        process.terminate()
        process.wait()
        path.unlink()


def measure(name: str, peers: Path | None, rounds: int) -> list[dict[str, Any]]:
    case = CASES[name]
    shape = config(case.model)
    if case.layers:
        shape = replace(shape, layers=case.layers)
    if case.memory_goal is not None:
        return stored(name, case, shape, rounds)
    model = shapes.model(shape, case.kind)
    # other work on the machine only lowers a rate: the highest of a case is its limit
    weights = shapes.streamed_bytes(model)
    buffer = read_buffer(2**28)
    rates, mine, theirs = [], [], []
    with llama_cpp(case, shape, peers) as peer:
        for _ in range(rounds):
            rates.append(read_rate(buffer))
            mine.append(ours(model, case))
            if peer:
                theirs.append(peer())
        rates.append(read_rate(buffer))
    del model
    give_back_freed_memory()
    return _rows(name, case, weights, max(rates), mine, theirs)


def stored(name: str, case: Case, shape: Any, rounds: int) -> list[dict[str, Any]]:
    """A model in a directory: how long it takes to load, and what memory it is in while it runs."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        shapes.store(shape, case.kind, Path(folder))
        start = time.perf_counter()
        model = load(Path(folder))
        loaded = time.perf_counter() - start
        first, _ = ours(model, replace(case, prompt=1, tokens=0))  # maps every page
        buffer = read_buffer(2**27)
        rates, mine = [read_rate(buffer)], []
        for _ in range(rounds):
            mine.append(ours(model, case))
            rates.append(read_rate(buffer))
        del buffer
        memory = _resident()
        rows = _rows(name, case, shapes.streamed_bytes(model), max(rates), mine, [])
        text = f"{name}: GiB resident, loaded in {loaded:.1f} s, first token after {first:.1f} s"
        rows.append({"name": text, "ours": memory, "peer": None, "ratio": None,
                     "goal": case.memory_goal, "met": memory <= case.memory_goal})  # fmt: skip
        del model
        give_back_freed_memory()
    return rows


def _resident() -> float:
    """GiB of memory that this process is in, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmRSS")) / 2**20


def _rows(
    name: str, case: Case, weights: int, rate: float, mine: list[Any], theirs: list[Any]
) -> list[dict[str, Any]]:
    if case.first:
        a, b = median(m[0] for m in mine), median(t[0] for t in theirs) if theirs else None
        ratio = b / a if b else None
        return [row(f"{name}: seconds to the first token", a, b, ratio, case.goal)]
    speed = case.tokens / median(m[1] for m in mine)
    found = []
    if theirs:
        other = case.tokens / median(t[1] for t in theirs)
        found.append(row(f"{name}: tokens/s, llama.cpp {case.form}", speed, other,
                          speed / other, case.goal))  # fmt: skip
    limit = rate / weights
    text = f"{name}: tokens/s, limit of {weights / 1e9:.2f} GB at {rate / 1e9:.1f} GB/s"
    found.append(row(text, speed, limit, speed / limit, case.limit_goal))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    options = parser.parse_args()
    if strange := [name for name in options.cases if name not in CASES]:
        parser.error(f"no case {strange[0]}; there are {', '.join(CASES)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `phikit generate`, `chat` and `serve` do
    rows: list[dict[str, Any]] = []
    for name in options.cases or CASES:
        rows += measure(name, options.peers, options.rounds)
        print(table(rows[-2:]), flush=True)
    print(table(rows))
    print(json.dumps({"bench": "engine_single", "rows": rows}))


if __name__ == "__main__":
    main()
