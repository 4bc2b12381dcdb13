"""What a run cost, stage by stage, and how well it recalls over long contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from phikit.reporting.run_dir import Done, Run


@dataclass(frozen=True)
class Cost:
    """Seconds, model tokens, FLOPs (counted from shapes) and peak bytes of a stage or of all."""

    name: str
    verb: str
    seconds: float
    trained: float
    generated: float
    flops: float
    peak: float
    share: float = 0.0


def _of(stage: Done, longest: float) -> Cost:
    cost = stage.cost
    return Cost(
        name=stage.name,
        verb=stage.verb,
        seconds=cost["seconds"],
        trained=cost.get("tokens_trained", 0),
        generated=cost.get("tokens_generated", 0),
        flops=cost.get("flops", 0.0),
        peak=cost.get("peak_bytes", 0),
        share=cost["seconds"] / longest if longest else 0.0,
    )


def table(run: Run) -> list[Cost]:
    """Every stage in order; `share` is of the longest stage's time, for the bars."""
    longest = max(stage.cost["seconds"] for stage in run.stages)
    return [_of(stage, longest) for stage in run.stages]


def totals(run: Run) -> Cost:
    """Sums over all stages; of the peaks the highest."""
    rows = table(run)
    return Cost(
        name="all stages",
        verb="",
        seconds=sum(r.seconds for r in rows),
        trained=sum(r.trained for r in rows),
        generated=sum(r.generated for r in rows),
        flops=sum(r.flops for r in rows),
        peak=max(r.peak for r in rows),
    )


@dataclass(frozen=True)
class Recall:
    """The recall of one model: `rows` by length, each an accuracy with its interval."""

    model: str
    context: int
    rows: dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Recalls:
    """The recall of all a run's models, and the lengths that any of them was asked at."""

    models: tuple[Recall, ...]
    lengths: tuple[int, ...]


def recalls(run: Run) -> Recalls | None:
    """Every recall evaluation in order; None when there is none."""
    found = []
    for stage in run.of("evals.recall"):
        rows = {int(row["length"]): dict(row) for row in stage.summary["by_length"]}
        found.append(Recall(stage.given("model"), int(stage.summary["context"]), rows))
    lengths = sorted({length for recall in found for length in recall.rows})
    return Recalls(tuple(found), tuple(lengths)) if found else None
