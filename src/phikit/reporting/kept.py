"""What a run's models kept of what they could before: ordinary text, and doing as they are told."""

from __future__ import annotations

from dataclasses import dataclass

from phikit.evals.statistics import Difference, Estimate, accuracy, item_means, paired
from phikit.records import Score
from phikit.reporting.run_dir import Run


@dataclass(frozen=True)
class Kept:
    """One model. `followed` is its accuracy on IFEval, `change` that against the first model."""

    model: str
    perplexity: float | None
    followed: Estimate | None
    max_tokens: int
    change: Difference | None


def table(run: Run) -> list[Kept]:
    """A row for each model whose perplexity or IFEval accuracy was measured, in order."""
    perplexity = {s.given("model"): s.summary["perplexity"] for s in run.of("train.perplexity")}
    asked = {s.given("model"): s for s in run.of("evals.ifeval")}
    scores = {
        model: item_means(stage.records("scores.parquet", Score), greedy=True)
        for model, stage in asked.items()
    }
    order = [s.name for s in run.stages if s.name in perplexity.keys() | asked.keys()]
    first = next((scores[model] for model in order if model in scores), None)
    rows = []
    for model in order:
        mine = scores.get(model)
        change = None
        if mine and first and mine is not first and mine.keys() == first.keys():
            change = paired(first, mine)
        rows.append(
            Kept(
                model=model,
                perplexity=perplexity.get(model),
                followed=accuracy(list(mine.values())) if mine else None,
                max_tokens=asked[model].config["max_tokens"] if model in asked else 0,
                change=change,
            )
        )
    return rows
