"""An ablation without a fine-tuned model: arms that differ in one thing, over several seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phikit.errors import PhikitError, did_you_mean
from phikit.evals.statistics import OverSeeds, over_seeds, t_quantile, two_sided_p
from phikit.reporting.evaluations import Evaluations
from phikit.reporting.run_dir import Run
from phikit.reporting.words import MINUS, p_value, percent, points


@dataclass(frozen=True)
class Arms:
    """One run: each arm's share of right answers by item, and what it needs for organic text.

    Attributes:
        means: model → item → share of right answers.
        nats: model → nats per token of held-out text, where it was measured.
    """

    name: str
    means: Mapping[str, Mapping[str, float]]
    nats: Mapping[str, float]


def read(directory: Path) -> Arms:
    """
    Raises:
        PhikitError: nothing is evaluated there.
    """
    run = Run(directory)
    means = {name: e.means for name, e in Evaluations(run).by_model.items()}
    if not means:
        raise PhikitError(f"{directory}: no model is evaluated yet")
    texts = {s.given("model"): s.summary["nll"] for s in run.of("train.perplexity")}
    return Arms(directory.resolve().name, means, texts)


def table(directories: Sequence[Path], against: str = "") -> str:
    """Every arm against one of them, as a Markdown table; the first one when none is named.

    Two intervals for accuracy, as `over_seeds` says; for nats per token that over seeds alone.

    Raises:
        PhikitError: an arm is not there, or is not in all of the runs.
    """
    runs = [read(directory) for directory in directories]
    names = [n for n in runs[0].means if all(n in run.means for run in runs)]
    base = against or names[0]
    if base not in names:
        raise PhikitError(f"no arm {base!r} is evaluated in all runs", did_you_mean(base, names))
    lines = [
        ["trained on", "right answers", f"change against {base}", "95 % (these models)", "p",
         "95 % (a new seed)", "nats per token", "change", "95 % (a new seed)"],
        ["---"] * 9,
    ]  # fmt: skip
    for name in names:
        shares = [sum(r.means[name].values()) / len(r.means[name]) for r in runs]
        right = f"{percent(sum(shares) / len(shares))} ({', '.join(map(percent, shares))})"
        nats = [r.nats[name] for r in runs if name in r.nats]
        mean = f"{sum(nats) / len(nats):.3f}" if nats else "–"
        if name == base:
            lines.append([name, right, "–", "–", "–", "–", mean, "–", "–"])
            continue
        result = over_seeds([(r.means[base], r.means[name]) for r in runs])
        lines.append([name, right, *_accuracy(result), mean, *_nats(runs, base, name)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _accuracy(result: OverSeeds) -> list[str]:
    d, new = result.pooled, result.seeds
    return [
        points(d.value),
        f"{points(d.low)} to {points(d.high)}",
        p_value(d.p),
        f"{points(new.low)} to {points(new.high)}" if len(result.runs) > 1 else "–",
    ]


def _nats(runs: Sequence[Arms], base: str, name: str) -> list[str]:
    """The mean change, and its t-interval with the runs as the unit."""
    found = [r.nats[name] - r.nats[base] for r in runs if name in r.nats and base in r.nats]
    if not found:
        return ["–", "–"]
    mean = sum(found) / len(found)
    if len(found) < 2:
        return [_signed(mean), "–"]
    deviation = math.sqrt(sum((x - mean) ** 2 for x in found) / (len(found) - 1))
    error = deviation / math.sqrt(len(found))
    half = t_quantile(0.975, len(found) - 1) * error
    sure = two_sided_p(mean / error, len(found) - 1) if error else float(mean == 0)
    return [_signed(mean), f"{_signed(mean - half)} to {_signed(mean + half)} (p {p_value(sure)})"]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", MINUS)
