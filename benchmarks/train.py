"""Training against its peers: the same model, data, optimiser and threads, in one run.

Every contender is a process of its own that takes a step when it is told to; ours and the peer's
steps alternate, and medians are compared, so a neighbour's noise falls on both. Losses are
compared step by step. The measured rate of bfloat16 products in between says what the machine
could do at that time.

    python benchmarks/train.py [--peers .venv-peers] [--steps 3] [--only sft dpo ...]
                               [--against plain trl ...]

Rows: sft (8 × 512 tokens), lengths (real lengths), dpo, grpo, pretrain10m, pretrain125m, and
losses (20 steps in bf16 and f32 against TRL).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phikit.fetch import smollm2

HERE = Path(__file__).parent / "training"
OPTIMISER = {"lr": 1e-5, "betas": [0.9, 0.95], "eps": 1e-8, "clip": 1.0}
_NUMBERS = itertools.count()
SHAPES = {
    "pretrain10m": dict(
        vocab_size=8192, hidden_size=256, intermediate_size=768, layers=9, heads=4, kv_heads=2,
        head_dim=64, max_positions=512, tied=False,
    ),
    "pretrain125m": dict(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, layers=12, heads=12,
        kv_heads=12, head_dim=64, max_positions=512, tied=False,
    ),
}  # fmt: skip


class Trainer:
    """A contender in a process of its own."""

    def __init__(
        self, python: str, script: str, spec: dict[str, Any], log: Path, folder: str
    ) -> None:
        self.log = log.open("a")
        file = Path(folder) / f"{next(_NUMBERS)}.json"
        file.write_text(json.dumps(spec))
        self.process = subprocess.Popen(
            [python, str(HERE / script), str(file)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.read()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"a trainer stopped; see {self.log.name}")

    def step(self) -> dict[str, Any]:
        self._tell("step")
        return self.read()

    def end(self) -> int:
        """Ends it; returns its peak memory in bytes."""
        self._tell("end")
        peak = self.read()["peak"]
        self.process.wait()
        return peak

    def _tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()


def product_rate(seconds: float = 0.5) -> float:
    """bfloat16 products of 2048 rows, in operations per second, right now."""
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    a @ b
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        a @ b
        count += 1
    return count * 2 * 2048**3 / (time.perf_counter() - began)


class Bench:
    def __init__(
        self, peers: Path, steps: int, threads: int, log: Path, against: list[str]
    ) -> None:
        self.peers, self.steps, self.threads, self.log = peers, steps, threads, log
        self.against = against  # these peers only; all when empty
        self.model = str(smollm2())
        self.rows: list[dict[str, Any]] = []

    def spec(self, kind: str, precision: str = "bf16", **rest: Any) -> dict[str, Any]:
        return {
            "kind": kind, "model": self.model, "precision": precision, "threads": self.threads,
            "optimiser": OPTIMISER, "steps": 10**6, "in_order": True, **rest,
        }  # fmt: skip

    @contextmanager
    def pair(self, ours: dict[str, Any], peer: dict[str, Any]) -> Iterator[tuple[Trainer, Trainer]]:
        python = str(self.peers / "bin" / "python")
        with tempfile.TemporaryDirectory() as folder:
            a = Trainer(sys.executable, "ours.py", ours, self.log, folder)
            b = Trainer(python, "peers.py", peer, self.log, folder)
            try:
                yield a, b
            finally:
                a.process.kill()
                b.process.kill()

    def race(
        self, name: str, ours: dict[str, Any], peer: dict[str, Any], goal: float | None,
        memory_goal: float | None = None, flops: float | None = None,
    ) -> None:  # fmt: skip
        """Alternate steps, one of each to warm up; rows for speed, memory and the peak's share."""
        if self.against and peer["peer"] not in self.against:
            return
        label = f"{name} vs {peer['peer']}"
        with self.pair(ours, peer) as (a, b):
            a.step(), b.step()
            mine, theirs, rates = [], [], []
            for _ in range(self.steps):
                mine.append(a.step())
                rates.append(product_rate())
                theirs.append(b.step())
            peaks = a.end(), b.end()
        unit = "pairs" if name == "dpo" else "tokens"
        for measure, per, wanted in (("seconds", "s", goal), ("work", "s of a processor", None)):
            speed = [statistics.median(x["tokens"] / x[measure] for x in side)
                     for side in (mine, theirs)]  # fmt: skip
            self.row(f"{label}: {unit}/{per}", *speed, wanted)
        gib = [p / 2**30 for p in peaks]
        self.row(f"{label}: peak GiB", *gib, memory_goal, less=True)
        if flops is not None:
            shares = [
                x["tokens"] * flops / x["seconds"] / r for x, r in zip(mine, rates, strict=True)
            ]
            share = statistics.median(shares)
            self.row(f"{name}: share of the product rate now", share, 1.0, 0.55)

    def row(
        self, name: str, ours: float, peer: float, goal: float | None, less: bool = False
    ) -> None:
        ratio = ours / peer
        met = None if goal is None else (ratio <= goal if less else ratio >= goal)
        shown = {"name": name, "ours": round(ours, 6), "peer": round(peer, 6),
                 "ratio": round(ratio, 6), "goal": goal, "met": met}  # fmt: skip
        self.rows.append(shown)
        mark = {True: "met", False: "NOT met", None: ""}[met]
        wanted = "" if goal is None else f"{'<=' if less else '>='} {goal:g}"
        print(f"{name:52} {ours:12.4g} {peer:12.4g} {ratio:10.4g} {wanted:>9} {mark}", flush=True)

    # --- the contests ---

    def sft(self) -> None:
        rows = ids(64, 512)
        common = self.spec("sft", rows=rows, batch=8, length=512, mean_tokens=8 * 511)
        ours = {**common, "microbatch": 2}
        flops = 3 * smollm2_flops(256)
        self.race("sft", ours, {**common, "peer": "plain"}, 1.2, 0.35, flops)
        self.race("sft", ours, {**common, "peer": "trl recomputing"}, 3.5, 0.35)  # as it comes
        self.race("sft", ours, {**common, "peer": "trl"}, None)

    def lengths(self) -> None:
        stream = np.random.default_rng(0)
        sizes = np.clip(stream.lognormal(4.8, 0.65, 512), 20, 512).astype(int).tolist()
        rows = [row[:n] for row, n in zip(ids(512, 512), sizes, strict=True)]
        mean = round(sum(sizes) / len(sizes) - 1)
        print(f"lengths: mean {mean + 1}, most {max(sizes)}")
        common = self.spec("sft", rows=rows, batch=8, length=512, mean_tokens=8 * mean)
        ours = {**common, "batch": 3, "microbatch": 2, "in_order": False}
        self.race("lengths", ours, {**common, "peer": "plain"}, 1.5, None)
        self.race("lengths", ours, {**common, "peer": "trl"}, 3.0, None)
        packed = {**common, "batch": 3, "mean_tokens": 3 * 505, "peer": "trl packed"}
        self.race("lengths", ours, packed, 3.0, None)

    def dpo(self) -> None:
        stream = np.random.default_rng(1)
        pairs = [
            [ids(1, int(n), 3 * i + part)[0] for part, n in enumerate(sizes)]
            for i, sizes in enumerate(stream.integers(16, 40, (64, 3)))
        ]  # fmt: skip
        common = self.spec("dpo", pairs=pairs, batch=64)
        # small enough for the goal of memory: the optimiser's share alone is two thirds of it; four
        # times as many are a third faster and take 0.45 of TRL's memory
        ours = {**common, "micro_tokens": 384}
        self.race("dpo", ours, {**common, "peer": "trl"}, 3.0, 0.35)
        # ours reads the reference once, before the steps; so does TRL when it is told to
        self.race("dpo", ours, {**common, "peer": "trl precomputing"}, None)

    def grpo(self) -> None:
        common = self.spec("grpo", prompts=ids(64, 48), batch=8, group=8, new=128)
        self.race("grpo", {**common, "micro_tokens": 1536}, {**common, "peer": "trl"}, 5.0)

    def pretrain(self, name: str) -> None:
        shape = SHAPES[name]
        rows = ids(64, 512, most=shape["vocab_size"])
        common = self.spec("pretrain", rows=rows, batch=8, length=512, shape=shape)
        ours = {**common, "microbatch": 2 if name == "pretrain125m" else 0}
        from phikit.models.decoder_config import DecoderConfig

        flops = 3 * DecoderConfig(**shape).flops_per_token(256) if "125" in name else None  # type: ignore[arg-type]
        for peer in ("plain", "litgpt"):
            self.race(name, ours, {**common, "peer": peer}, 1.5, None, flops)
            flops = None

    def losses(self, steps: int = 20) -> None:
        """bfloat16 at the size of the other rows; float32, which is slow, at a small one."""
        pairs = [[ids(1, 16, 9 * i + j)[0] for j in range(3)] for i in range(4 * steps)]
        for precision, goal, batch, length in (("bf16", 1e-3, 8, 512), ("f32", 1e-5, 4, 64)):
            rows = ids(batch * steps, length)
            sft = self.spec(
                "sft", precision, rows=rows, batch=batch, length=length, mean_tokens=1, microbatch=2
            )
            dpo = self.spec("dpo", precision, pairs=pairs, batch=4, micro_tokens=1024)
            for spec, size in ((sft, f"{batch} × {length}"), (dpo, "4 pairs")):
                with self.pair(spec, {**spec, "peer": "trl"}) as (a, b):
                    both = [(a.step()["loss"], b.step()["loss"]) for _ in range(steps)]
                worst = max(abs(x - y) / abs(y) for x, y in both)
                name = f"{spec['kind']} losses, {steps} steps of {size}, {precision}: worst"
                self.row(name, worst, 1.0, goal, less=True)


def ids(count: int, length: int, seed: int = 0, most: int = 49152) -> list[list[int]]:
    """Rows of token ids, some far commoner than others as in text."""
    stream = np.random.default_rng([seed, length])
    return (np.minimum(stream.zipf(1.2, (count, length)) + 20, most - 1)).tolist()


def smollm2_flops(context: int) -> float:
    from phikit.models.family import SMOLLM2

    return SMOLLM2.flops_per_token(context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--peers", type=Path, default=Path(".venv-peers"))
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=Path, default=Path("bench-train.log"))
    names = ["losses", "sft", "lengths", "dpo", "grpo", "pretrain10m", "pretrain125m"]
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--against", nargs="*", default=[], help="only these peers")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    bench = Bench(chosen.peers, chosen.steps, chosen.threads, chosen.log, chosen.against)
    print(f"bfloat16 products: {product_rate() / 1e9:.0f} GFLOP/s with {chosen.threads} threads")
    print(f"{'':52} {'ours':>12} {'peer':>12} {'ratio':>10} {'goal':>9}")
    for name in chosen.only:
        if name.startswith("pretrain"):
            bench.pretrain(name)
        else:
            getattr(bench, name)()
    print(json.dumps({"bench": "train", "rows": bench.rows}))


if __name__ == "__main__":
    main()
