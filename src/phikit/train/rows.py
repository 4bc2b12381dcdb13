"""Metrics on their way to the disk, to the screen and to trackers."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from typing import Any

import torch

from phikit.stage import Context
from phikit.train.trackers import Tracker, Trackers

_FLUSH = 1.0  # seconds
_LONG = 10.0  # seconds after which a run is worth measuring the machine for


def product_rate(precision: str, device: torch.device) -> float:
    """Operations per second that products of 2,048 rows reach on this machine at this moment."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x = torch.ones(2048, 2048, dtype=dtype, device=device)
    x @ x
    began = time.perf_counter()
    for _ in range(3):
        y = x @ x
    float(y[0, 0])  # waits for a device
    return 3 * 2 * 2048**3 / (time.perf_counter() - began)


class Rows:
    """Rows of metrics, written seldom enough not to slow training.

    The line on the screen has the loss, tokens per second, the share of the measured product rate
    (once, some seconds into the run) and the peak memory; the display adds the time left.
    """

    def __init__(
        self,
        ctx: Context,
        steps: int,
        tokens: int,
        flops: float,
        precision: str,
        device: torch.device,
        track: Sequence[Tracker],
        done: int = 0,
    ) -> None:
        self.ctx, self.steps = ctx, steps
        self.precision, self.device = precision, device
        self.waiting: list[dict[str, Any]] = []
        self.trackers = Trackers(track, ctx.dir, done)
        self.began = self.flushed = time.monotonic()
        self.first = self.last = tokens
        self.first_flops = flops
        self.peak = 0.0

    def add(self, row: dict[str, Any], tokens: int, flops: float) -> None:
        """A step's row, and the run's tokens and operations so far."""
        self.waiting.append(row)
        self.last = tokens
        shown: dict[str, float | str] = {}
        if row["loss"] is not None:
            shown["loss"] = row["loss"]
        shown["tokens_per_s"] = self.tokens_per_s()
        passed = time.monotonic() - self.began
        if passed > _LONG:
            if not self.peak:
                self.peak = product_rate(self.precision, self.device)
                passed = time.monotonic() - self.began
            shown["peak"] = f"{(flops - self.first_flops) / passed / self.peak:.0%}"
            shown["GiB"] = round(peak_mib() / 1024, 1)
        self.ctx.progress.update(row["step"], self.steps, **shown)
        if time.monotonic() - self.flushed > _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that wait: into metrics.jsonl, and to the trackers."""
        self.ctx.metrics.append(*self.waiting)
        self.trackers.add(self.waiting)
        self.waiting = []
        self.flushed = time.monotonic()

    def tokens_per_s(self) -> float:
        """The mean rate since this process began to train."""
        return (self.last - self.first) / max(1e-9, time.monotonic() - self.began)


def peak_mib() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
