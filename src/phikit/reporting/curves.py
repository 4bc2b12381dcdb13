"""Line charts as geometry: the template draws them, scaled to any width without scaling the text.

A chart lives in a box of 1000 × 1000 units, x to the right and y downwards, that the page
stretches; strokes keep their width. Labels stand beside it as text, placed by their share
of an axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from phikit.reporting.run_dir import Done, Run

BOX = 1000.0
MOST_POINTS = 240
#: Metrics worth a panel of their own beside the loss, with the name that people know them by.
PANELS = {
    "margin": "reward margin",
    "accuracy": "pairs ranked right",
    "reward": "mean reward",
    "right": "rollouts that were right",
    "kl": "KL divergence",
    "entropy": "entropy",
    "length": "tokens per rollout",
}


@dataclass(frozen=True)
class Axis:
    """A linear axis with round ticks: pairs of a value and its share of the length."""

    low: float
    high: float
    ticks: tuple[tuple[float, float], ...]

    def share(self, value: float) -> float:
        """Where a value lies: 0 at the low end, 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Panel:
    """One chart: `path` is a line for every step, `smooth` its running mean."""

    title: str
    path: str
    smooth: str
    x: Axis
    y: Axis
    first: float
    last: float


@dataclass(frozen=True)
class Training:
    """What one training stage's metrics show, and what its summary notes of itself."""

    stage: Done
    steps: int
    note: str
    panels: tuple[Panel, ...]


def axis(values: Sequence[float], ticks: int = 4, least: float = 0.0) -> Axis:
    """An axis that holds all values, its ends widened to round numbers; at least `least` long."""
    low, high = min(values), max(values)
    if high - low <= least:
        middle, half = (low + high) / 2, max(least, abs(low) * 0.1, 1e-9) / 2
        low, high = middle - half, middle + half
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s for m in (1, 2, 2.5, 5, 10) if (s := m * power) >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    low, high = first * step, last * step
    marks = tuple(
        (round(i * step, 12), (i * step - low) / (high - low)) for i in range(first, last + 1)
    )
    return Axis(low, high, marks)


def steps_axis(first: float, last: float) -> Axis:
    """An axis that ends exactly where the steps do, with round ticks inside."""
    outer = axis([first, last])
    inner = Axis(first, last if last > first else first + 1, ())
    marks = [
        (v, inner.share(v)) for v, _ in outer.ticks if first <= v <= inner.high and v == int(v)
    ]
    return Axis(inner.low, inner.high, tuple(marks))


def line(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> str:
    """An SVG path through the points."""
    spots = [
        f"{BOX * x.share(a):.1f},{BOX * (1 - y.share(b)):.1f}" for a, b in zip(xs, ys, strict=True)
    ]
    return "M" + "L".join(spots) if spots else ""


def band(
    xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], x: Axis, y: Axis
) -> str:
    """An SVG path around the area between two lines."""
    there = line(xs, highs, x, y)
    back = line(list(reversed(xs)), list(reversed(lows)), x, y)
    return there + "L" + back.removeprefix("M") + "Z" if there else ""


def training(run: Run) -> list[Training]:
    """Every training stage with its curves, in order."""
    found = []
    for stage in run.training:
        rows = stage.rows("metrics.jsonl")
        names = ["loss", *(name for name in PANELS if any(name in row for row in rows))]
        panels = [p for name in names if (p := _panel(name, rows))]
        found.append(Training(stage, len(rows), str(stage.summary.get("note", "")), tuple(panels)))
    return found


def _panel(name: str, rows: Sequence[dict[str, float]]) -> Panel | None:
    points = [
        (float(row["step"]), float(row[name]))
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name])
    ]
    if len(points) < 2:
        return None
    smoothed = _running_mean([v for _, v in points], max(1, len(points) // 25))
    stride = math.ceil(len(points) / MOST_POINTS)
    kept = sorted({*range(0, len(points), stride), len(points) - 1})
    xs, ys = [points[i][0] for i in kept], [points[i][1] for i in kept]
    means = [smoothed[i] for i in kept]
    # single spikes would flatten everything else: the axis holds the means and most of the points
    ordered = sorted(ys)
    core = ordered[len(ordered) // 100 : len(ordered) - len(ordered) // 100]
    x, y = steps_axis(xs[0], xs[-1]), axis([*core, *means])
    clipped = [min(max(v, y.low), y.high) for v in ys]
    return Panel(
        title=PANELS.get(name, name),
        path=line(xs, clipped, x, y),
        smooth=line(xs, means, x, y),
        x=x,
        y=y,
        first=smoothed[0],
        last=smoothed[-1],
    )


def _running_mean(values: Sequence[float], half: int) -> list[float]:
    """The mean of each value and up to `half` neighbours on either side."""
    sums = [0.0]
    for v in values:
        sums.append(sums[-1] + v)
    n = len(values)
    spans = [(max(0, i - half), min(n, i + half + 1)) for i in range(n)]
    return [(sums[b] - sums[a]) / (b - a) for a, b in spans]
