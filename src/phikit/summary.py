"""What a run prints: the table of --dry-run, and the result at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phikit import ledger
from phikit.evals.statistics import Estimate
from phikit.progress import duration
from phikit.recipes.schema import Recipe
from phikit.reporting.evaluations import Comparison, Evaluations
from phikit.reporting.run_dir import Run
from phikit.run import Forecast


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


def text(run: Path) -> str:
    """One line per evaluated stage, what it all cost, where the report is, and how to go on."""
    records = [record for _, record in ledger.stages(run)]
    seconds = sum(record["cost"]["seconds"] for record in records)
    peak = max((record["cost"]["peak_bytes"] for record in records), default=0)
    lines = [
        "",
        *(_accuracies(Evaluations(Run(run))) if records else []),
        f"{len(records)} stages in {duration(seconds)}, at most {peak / 2**30:.1f} GiB of memory",
    ]
    if (run / "report.html").exists():
        lines.append(f"report  {run / 'report.html'}")
    if any((folder / "model" / "config.json").exists() for folder, _ in ledger.stages(run)):
        lines.append(f"chat    phikit chat {run}")
    return "\n".join(lines)


def _accuracies(evaluations: Evaluations) -> list[str]:
    """A table of the final model's history, then the ablations and the whole difference."""
    if not evaluations.chain:
        return []
    width = max(len(e.model.name) for e in evaluations.by_model.values()) + 2
    changes = {c.after: c for c in evaluations.steps()}
    lines = [f"{'stage':<{width}}accuracy    95 % interval   greedy   change, in points"]
    for evaluation in evaluations.chain:
        name = evaluation.model.name
        greedy = evaluation.greedy_accuracy
        lines.append(
            f"{name:<{width}}{_row(evaluation.accuracy)}   "
            f"{greedy.value if greedy else evaluation.accuracy.value:6.1%}   "
            f"{_change(changes.get(name))}  {evaluation.model.summary.get('note', '')}".rstrip()
        )
    for beside in evaluations.others:
        lines.append(f"{beside.model.name:<{width}}{_row(beside.accuracy)}   (beside the chain)")
    lines.append("")
    for comparison in [*evaluations.ablations(), evaluations.headline]:
        if comparison is not None:
            lines.append(f"{comparison.label}: {_change(comparison)}")
    return lines if lines[-1] == "" else [*lines, ""]


def _row(accuracy: Estimate) -> str:
    return f"{accuracy.value:8.1%}   {accuracy.low:6.1%} – {accuracy.high:6.1%}"


def _change(comparison: Comparison | None) -> str:
    """A paired difference with its 95 % interval, and what it allows one to say."""
    if comparison is None:
        return ""
    if (d := comparison.difference) is None:
        return "not the same items"
    return f"{100 * d.value:+.1f}  [{100 * d.low:+.1f}, {100 * d.high:+.1f}]  {d.finding}"
