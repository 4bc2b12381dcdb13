"""What a run prints: the table of --dry-run, and the result at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phikit import ledger
from phikit.evals.statistics import Estimate
from phikit.models import plan
from phikit.models.gpus import gpu_named
from phikit.models.throughput import Setting
from phikit.progress import duration, quantity
from phikit.recipes.schema import Cluster, Recipe
from phikit.reporting.evaluations import Comparison, Evaluations
from phikit.reporting.run_dir import Run
from phikit.run import Forecast


def table(forecasts: Sequence[Forecast], recipe: Recipe, run: Path) -> str:
    """The stages of a recipe: what each is, its size and rough time, and whether it would run."""
    name_width = max(len(cast.step.name) for cast in forecasts)
    verb_width = max(len(cast.step.spec.verb) for cast in forecasts)
    size_width = max(len(cast.estimate.size) for cast in forecasts)
    planned = on_cluster(forecasts, recipe)
    lines = [f"{recipe.name}: {recipe.about}", f"in {run}, seed {recipe.seed}, "
             f"{recipe.threads} threads", ""]  # fmt: skip
    for cast in forecasts:
        # stages' own estimates are of two cores, which say nothing of a cluster
        time = cast.estimate if recipe.cluster is None else planned.get(cast.step.name)
        shown = duration(time.seconds) if time is not None and time.seconds else ""
        lines.append(
            f"{cast.step.number:>3}  {cast.step.name:<{name_width}}  "
            f"{cast.step.spec.verb:<{verb_width}}  {cast.estimate.size:<{size_width}}  "
            f"{shown:>7}  {'runs: ' + cast.why if cast.why else 'done'}"
        )
    to_run = [cast for cast in forecasts if cast.why]
    if recipe.cluster is not None:
        return "\n".join([*lines, "", *_cluster_lines(planned, recipe.cluster)])
    seconds = duration(sum(cast.estimate.seconds for cast in to_run))
    amount = f"{len(to_run)} of {len(forecasts)} stages would run"
    lines += ["", f"{amount}, about {seconds} on two cores"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Planned:
    """A model's work on a recipe's cluster: seconds in all, and bytes on each GPU."""

    seconds: float
    memory: float
    tokens: float


def on_cluster(forecasts: Sequence[Forecast], recipe: Recipe) -> dict[str, Planned]:
    """What each stage that trains or draws takes on the recipe's cluster; empty without one."""
    cluster = recipe.cluster
    if cluster is None:
        return {}
    gpu = gpu_named(cluster.gpu)
    found = {}
    for cast in forecasts:
        estimate = cast.estimate
        work = estimate.trained + estimate.generated
        if estimate.shape is None or not work:
            continue
        context = estimate.context or estimate.shape.max_positions
        drawing = estimate.generated * estimate.shape.flops_per_token(context // 2)
        seconds = drawing / (cluster.gpus * gpu.peak * cluster.generation)
        memory = 2.0 * estimate.parameters  # bf16 weights, whole on each GPU
        if estimate.trained:
            training = plan.training(
                estimate.shape, gpu, Setting(cluster.gpus, context), estimate.trained,
                cluster.price, cluster.utilisation,
            )  # fmt: skip
            seconds, memory = seconds + training.seconds, training.memory
        found[cast.step.name] = Planned(seconds, memory, work)
    return found


def _cluster_lines(planned: Mapping[str, Planned], cluster: Cluster) -> list[str]:
    width = max(map(len, planned), default=0)
    lines = [
        f"on {cluster.gpus:,} × {cluster.gpu}, {cluster.utilisation:.0%} of the peak in training, "
        f"{cluster.generation:.0%} in generation"
    ]
    for name, p in planned.items():
        lines.append(
            f"  {name:<{width}}  {quantity(p.tokens):>7} tokens  {duration(p.seconds):>8}  "
            f"{p.memory / 1e9:6.1f} GB per GPU"
        )
    seconds = sum(p.seconds for p in planned.values())
    hours = seconds / 3600 * cluster.gpus
    lines.append(
        f"  {duration(seconds)} in all: {hours:,.0f} GPU hours, {hours * cluster.price:,.0f} at "
        f"{cluster.price:g} an hour"
    )
    lines.append(
        "  without a time: what no GPU computes, as no processors are stated, and what has no size"
    )
    return lines


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
