"""What a run prints: the table of --dry-run, and the result at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.ledger import newest_model
from phikit.progress import duration
from phikit.recipes.schema import Recipe
from phikit.run import Forecast

Stages = Sequence[tuple[Path, Mapping[str, Any]]]


def table(forecasts: Sequence[Forecast], recipe: Recipe, run: Path) -> str:
    """The stages of a recipe: what each is, its size and rough time, and whether it would run."""
    name_width = max(len(cast.step.name) for cast in forecasts)
    verb_width = max(len(cast.step.spec.verb) for cast in forecasts)
    size_width = max(len(cast.estimate.size) for cast in forecasts)
    lines = [f"{recipe.name}: {recipe.about}", f"in {run}, seed {recipe.seed}, "
             f"{recipe.threads} threads", ""]  # fmt: skip
    for cast in forecasts:
        seconds = duration(cast.estimate.seconds) if cast.estimate.seconds else ""
        lines.append(
            f"{cast.step.number:>3}  {cast.step.name:<{name_width}}  "
            f"{cast.step.spec.verb:<{verb_width}}  {cast.estimate.size:<{size_width}}  "
            f"{seconds:>7}  {'runs: ' + cast.why if cast.why else 'done'}"
        )
    to_run = [cast for cast in forecasts if cast.why]
    lines += ["", f"{len(to_run)} of {len(forecasts)} stages would run, about "
              f"{duration(sum(cast.estimate.seconds for cast in to_run))}"]  # fmt: skip
    return "\n".join(lines)


def text(stages: Stages, run: Path) -> str:
    """One line per evaluated stage, what it cost, where the report is, and how to go on."""
    lines = ["", *_accuracies(stages), ""]
    seconds = sum(record["cost"]["seconds"] for _, record in stages)
    peak = max((record["cost"]["peak_bytes"] for _, record in stages), default=0)
    lines.append(
        f"{len(stages)} stages in {duration(seconds)}, at most {peak / 2**30:.1f} GiB of memory"
    )
    if (run / "report.html").exists():
        lines.append(f"report  {run / 'report.html'}")
    try:
        newest_model(run)
    except PhikitError:
        return "\n".join(lines)
    return "\n".join([*lines, f"chat    phikit chat {run}"])


def _accuracies(stages: Stages) -> list[str]:
    evaluated = [
        (record["inputs"]["model"][0], record["summary"])
        for _, record in stages
        if {"accuracy", "low", "high"} <= record["summary"].keys() and "model" in record["inputs"]
    ]
    if not evaluated:
        return []
    width = max(len(name) for name, _ in evaluated)
    lines = [f"{'stage':<{width}}  accuracy  95 % interval   greedy"]
    for name, summary in evaluated:
        interval = f"{summary['low']:.1%} – {summary['high']:.1%}"
        greedy = f"{summary['greedy']:7.1%}" if "greedy" in summary else ""
        lines.append(f"{name:<{width}}  {summary['accuracy']:8.1%}  {interval:<14}  {greedy}")
    return lines
