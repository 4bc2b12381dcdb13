"""The decoders' speed beside transformers': slices at real widths, bfloat16.

    python benchmarks/models.py [--rounds 2] [--models phi-4-mini flash phi-4]

Slices of 4 layers (flash: 5, one of each of its kinds), with the vocabulary cut by the same factor.
Works:

- forward: the logits of one row;
- train: forward and backward of one row with its loss;
- packed: the same on documents of real lengths that share the row and see only themselves. The
  peer gets them packed, under a mask, and padded, a row each; the faster way counts.

flash's peer runs eager only: its scan is a loop over the positions, which compiling unrolls for
longer than a benchmark may take; our compiled model is compared with that.

Each side is a process of its own, as it comes: ours keeps freed memory, as `phikit train` does.
Both read the same weights and must come to the same loss and size of gradients. They take turns; a
row's ratio is the median over the rounds of peer's time / our time. The rate of one large matrix
product is measured in every round between them: no model can be faster than that, so 1 / (the share
of it that the peer reaches) bounds the ratio ("bound"). Beside it stands the same ratio of the
processor's seconds, which neighbours disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent / "slices"
sys.path.insert(0, str(HERE))

from shapes import LAYERS, shape, skeleton, write  # noqa: E402
from worker import documents  # noqa: E402

TOKENS = {"phi-4-mini": 1024, "flash": 512, "phi-4": 256}
WORKS = ("forward", "train", "packed")
#: our mode, the peer's mode, goal of the ratio
PAIRS = (("eager", "eager", 1.0), ("compiled", "compiled", 1.3))
AGREE = 0.03  # of losses and gradients, in bfloat16
PACKED_PEERS = ("packed", "padded")


class Side:
    """A worker that waits for its turn."""

    def __init__(self, side: str, name: str, weights: Path, threads: int) -> None:
        command = [
            sys.executable, str(HERE / "worker.py"), side, name, str(weights), str(TOKENS[name]),
            str(threads),
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"{' '.join(self.process.args)} stopped")  # type: ignore[arg-type]

    def turn(self, mode: str, work: str, check: bool = False) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"mode": mode, "work": work, "check": check}) + "\n")
        self.process.stdin.flush()
        return self.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--models", nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--tokens", type=int, help="of each row [1024, 512, 256]")
    parser.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    parser.add_argument("--modes", nargs="+", default=["eager", "compiled"])
    parser.add_argument("--weights", type=Path, help="keep the slices' weights in this folder")
    asked = parser.parse_args()
    if asked.tokens:
        TOKENS.update(dict.fromkeys(TOKENS, asked.tokens))
    threads = torch.get_num_threads()
    print(f"{threads} threads, bfloat16, {asked.rounds} rounds", flush=True)
    rows: list[dict[str, Any]] = []
    for name in asked.models:
        with tempfile.TemporaryDirectory() as scratch:
            measured = Measured(name, asked, threads, asked.weights or Path(scratch))
        rows += measured.rows
    print(f"\n{'peer / ours':42}{'ratio':>8}{'processor':>11}{'goal':>7}{'bound':>8}")
    for row in rows:
        print(
            f"{row['name']:42}{row['ratio']:>7.2f}×{row['cpu_ratio']:>10.2f}×"
            f"{row['goal']:>6.1f}×{row['bound']:>7.2f}×"
            f"{'' if row['met'] else '   not met'}"
        )
    print(json.dumps({"bench": "models", "rows": rows}))


class Measured:
    """One model's slices, measured; `rows` are its results."""

    def __init__(self, name: str, asked: argparse.Namespace, threads: int, folder: Path) -> None:
        self.name, self.config, self.tokens = name, shape(name), TOKENS[name]
        self.times: dict[tuple[str, str, str], list[float]] = {}
        self.cpu: dict[tuple[str, str, str], list[float]] = {}
        self.rates: list[float] = []
        self.reference: dict[str, dict[str, Any]] = {}  # the peer's eager figures
        self.failed: set[tuple[str, str, str]] = set()
        self.works = [w for w in asked.works if name != "flash" or w != "packed"]
        self.modes = asked.modes
        self.packed_ways = list(PACKED_PEERS)
        self._describe()
        weights = folder / f"{name}.safetensors"
        if not weights.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write(name, weights)
        sides = {side: Side(side, name, weights, threads) for side in ("ours", "peer")}
        try:
            for side in sides.values():
                side.read()
            self._rounds(sides, asked.rounds)
        finally:
            for side in sides.values():
                side.process.kill()
                side.process.wait()
        self.rows = self._results()

    def _rounds(self, sides: dict[str, Side], rounds: int) -> None:
        for mode in self.modes:
            for work in self.works:
                for turn in range(rounds + 1):  # the first compiles, warms up and compares
                    self._compare(sides, mode, work, record=turn > 0)
                self._show(mode, work)

    def _compare(self, sides: dict[str, Side], mode: str, work: str, record: bool) -> None:
        """A turn of each side at a work; the first time they must come to the same."""
        found: dict[tuple[str, str], dict[str, Any]] = {}
        for side, worker in sides.items():
            own = self.packed_ways if (side, work) == ("peer", "packed") else [work]
            for way in own:
                if (side, mode, work) in self.failed or self._mode(side, mode, work) != mode:
                    continue
                answer = worker.turn(mode, way, check=not record)
                if "failed" in answer:
                    self.failed.add((side, mode, work))
                    print(f"  {side} {mode}, {way}: does not run: {answer['failed'][:60]}")
                    continue
                found[side, way] = answer
                if record:
                    key = (side, mode, way)
                    self.times.setdefault(key, []).append(found[side, way]["seconds"])
                    self.cpu.setdefault(key, []).append(found[side, way]["cpu"])
        self.rates.append(self._product())
        if record:
            return
        if work == "packed" and len(self.packed_ways) > 1:  # the faster goes on
            self.packed_ways = [min(PACKED_PEERS, key=lambda way: found["peer", way]["seconds"])]
            slower = max(found["peer", way]["seconds"] for way in PACKED_PEERS)
            print(f"  peer eager, the slower of packed and padded: {slower:.2f} s", flush=True)
        if found and work not in self.reference:
            self.reference[work] = list(found.values())[-1]
        reference = self.reference.get(work, {})
        for (side, way), other in found.items():
            for figure in ("value", "gradient"):
                a, b = other[figure], reference[figure]
                if abs(a - b) > AGREE * abs(b):
                    raise SystemExit(
                        f"{self.name} {work}, {mode}: {figure} is {a} by {side} ({way}), {b} by "
                        "the peer: a fast wrong model is no model"
                    )

    def _product(self) -> float:
        """Operations per second of one product as large as the model's largest."""
        d, f = self.config.hidden_size, 2 * self.config.intermediate_size
        x, w = torch.ones(2048, d).bfloat16(), torch.ones(f, d).bfloat16()
        y = torch.empty(2048, f, dtype=torch.bfloat16)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            torch.mm(x, w.T, out=y)
            times.append(time.perf_counter() - start)
        return 2 * 2048 * d * f / min(times)

    def _describe(self) -> None:
        print(
            f"\n{self.name}: {LAYERS[self.name]} layers, {self.config.vocab_size:,} words, "
            f"{self.tokens} tokens"
        )
        if "packed" in self.works:
            lengths = documents(self.tokens)
            print(f"  packed: {len(lengths)} documents of {min(lengths)} to {max(lengths)} tokens")
        print(f"  {'':34}{'s':>8}{'processor s':>14}{'of the products':>17}", flush=True)

    def _show(self, mode: str, work: str) -> None:
        for (side, its, way), took in self.times.items():
            if its == mode and (way == work or (work, way) == ("packed", "padded")):
                seconds = statistics.median(took)
                share = self._operations(way) / seconds / statistics.median(self.rates)
                cpu = statistics.median(self.cpu[side, its, way])
                label = f"{side} {mode}, {way}"
                print(f"  {label:34}{seconds:8.2f}{cpu:14.2f}{share:>17.0%}", flush=True)

    def _results(self) -> list[dict[str, Any]]:
        peak = statistics.median(self.rates)
        print(f"  products: {peak / 1e9:.0f} GFLOP/s, at best {max(self.rates) / 1e9:.0f}")
        return [
            self._row(work, mine, other, goal, peak)
            for work in self.works
            for mine, other, goal in PAIRS
            if mine in self.modes
        ]

    def _mode(self, side: str, mode: str, work: str) -> str:
        """The mode whose times count: where a side does not run compiled, its eager ones."""
        compiled_here = self.name != "flash" or side == "ours"
        runs = (side, mode, work) not in self.failed and compiled_here
        return mode if runs else "eager"

    def _row(self, work: str, mine: str, other: str, goal: float, peak: float) -> dict[str, Any]:
        way = self.packed_ways[0] if work == "packed" else work
        mine, other = self._mode("ours", mine, work), self._mode("peer", other, work)
        theirs = self.times["peer", other, way]
        ours = self.times["ours", mine, work]
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        used = zip(self.cpu["ours", mine, work], self.cpu["peer", other, way], strict=True)
        share = self._operations(work) / statistics.median(theirs) / peak
        return {
            "name": f"{self.name} {work}: {mine} / {other}",
            "ours": statistics.median(ours), "peer": statistics.median(theirs),
            "ratio": ratio, "goal": goal, "met": ratio >= goal, "bound": 1 / share,
            "cpu_ratio": statistics.median(b / a for a, b in used),
        }  # fmt: skip

    def _operations(self, work: str) -> float:
        """Of the matrix products and of attention to what each position may see."""
        if self.name == "flash":  # the five layers' matrices, and the head
            model = skeleton(self.name)
            sizes = sum(p.numel() for p in model.parameters() if p.dim() == 2)
            once = 2.0 * sizes * self.tokens
        else:
            seen = self.tokens / 2
            if work in PACKED_PEERS:
                seen = sum(n * n / 2 for n in documents(self.tokens)) / self.tokens
            once = self.tokens * self.config.flops_per_token(int(seen))
        return once if work == "forward" else 3 * once


if __name__ == "__main__":
    main()
