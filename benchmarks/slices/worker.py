"""One side of the benchmark in a process of its own: waits for a line, works, says what it took.

    python worker.py ours|peer phi-4-mini|phi-4|flash WEIGHTS TOKENS THREADS

A line is `{"mode": "eager" or "compiled", "work": ...}`; the works are

- forward: logits of one row, no gradients;
- train: forward and backward of one row with its loss;
- packed: the same on documents of real lengths that share the row.

Its answer has the seconds, those of the processor, the loss (or the logits' mean size) and the
gradients' size.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

WORKS = ("forward", "train", "packed")


def ids_of(tokens: int, vocabulary: int) -> Tensor:
    return torch.randint(1, vocabulary, (1, tokens), generator=torch.Generator().manual_seed(1))


def documents(tokens: int) -> list[int]:
    """Lengths of chats as instruction data has them: log-normal, a median of 150 tokens."""
    drawn = torch.randn(999, generator=torch.Generator().manual_seed(2)) * 0.8 + 5.0
    lengths: list[int] = []
    for length in drawn.exp().int().clamp(16, 1024).tolist():
        left = tokens - sum(lengths)
        lengths.append(min(length, left))
        if length >= left:
            break
    return lengths


def main() -> None:
    side, name, weights, tokens, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    if side == "ours":
        from ours import Ours as Side
    else:
        from peers import Peer as Side
    model: Any = Side(name, Path(weights), int(tokens))
    print("@{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            found = turn(model, **asked)
        except Exception as e:  # not everything compiles
            if asked["mode"] == "eager":
                raise
            found = {"failed": f"{type(e).__name__}: {str(e).strip().splitlines()[0]}"}
        print("@" + json.dumps(found), flush=True)


def turn(model: Any, mode: str, work: str, check: bool) -> dict[str, float]:
    """Does a work once."""
    call = model.call(mode, work)
    start, used = time.perf_counter(), time.process_time()
    if work == "forward":
        with torch.no_grad():
            result = call()
    else:
        result = call()
        result.backward()
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    found = {"seconds": seconds, "cpu": cpu, "gradient": 0.0}
    found["value"] = float(result.detach().float().abs().mean())
    if check and work != "forward":
        found["gradient"] = gradient(model.parameters())
    for parameter in model.parameters():
        parameter.grad = None
    return found


def gradient(parameters: list[torch.nn.Parameter]) -> float:
    """Size of all gradients together."""
    sizes = [p.grad.float().norm() for p in parameters if p.grad is not None]
    return float(torch.stack(sizes).norm())


if __name__ == "__main__":
    main()
