"""What a run showed: one self-contained HTML file, one picture, and a table over several seeds.

`write` reads a run directory and writes report.html into it: no network, no other files, and
everything a model or a document said is escaped. What a run has not got yet is left out, and the
page says so in one line. Every finding is worded from its interval, whichever way it went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.evals.statistics import over_seeds
from phikit.files import write_atomic
from phikit.reporting import arms, costs, curves, kept, searches, sources
from phikit.reporting.evaluations import Comparison, Evaluations
from phikit.reporting.pages import template
from phikit.reporting.run_dir import Run
from phikit.reporting.words import p_value, points

#: A section's title and the verbs of the stages that it needs one of.
SECTIONS = {
    "accuracy": ("Accuracy after every stage", ("evals.run",)),
    "kept": ("What it forgot", ("train.perplexity", "evals.ifeval")),
    "pivots": ("Pivotal tokens", ("pivots.search",)),
    "answers": ("Answers before and after", ("evals.run",)),
    "training": ("Training curves", ("train.pretrain", "train.sft", "train.dpo", "train.grpo")),
    "data": ("What it was made from", ("data.documents", "data.shards", "synth.procedural")),
    "recall": ("Long-context recall", ("evals.recall",)),
    "contamination": ("Contamination check", ("data.documents", "synth.procedural")),
    "cost": ("What it cost", ()),
    "lineage": ("The lineage of one sample", ("synth.procedural",)),
    "export": ("Export", ("export.hf",)),
    "settings": ("Settings and versions", ()),
}


def write(run_dir: Path) -> Path:
    """Writes report.html into a run directory and returns its path.

    Raises:
        PhikitError: the folder is not a run directory, or a file in it is corrupt.
    """
    path = run_dir / "report.html"
    write_atomic(path, render(run_dir))
    return path


def render(run_dir: Path) -> str:
    """The page of a run as HTML."""
    run = Run(run_dir)
    return template("page.html").render(contents(run))


def contents(run: Run) -> Mapping[str, Any]:
    """All that the template shows, by section; a section that has nothing to show is falsy."""
    evaluations = Evaluations(run)
    shown: dict[str, Any] = {
        "accuracy": evaluations if evaluations.chain else None,
        "kept": kept.table(run),
        "pivots": [s for s in searches.searches(run) if s.solutions],
        "answers": evaluations.changes(),
        "training": curves.training(run),
        "data": sources.made_from(run),
        "recall": costs.recalls(run),
        "contamination": sources.contamination(run),
        "cost": costs.table(run),
        "lineage": sources.lineage(run),
        "export": run.of("export.hf"),
        "settings": run.stages,
    }
    steps, ablations = evaluations.steps(), evaluations.ablations()
    against = evaluations.against_sft()[1:]  # the first is among the steps already
    return {
        "name": run.directory.resolve().name,
        "run": run,
        "sections": SECTIONS,
        "shown": shown,
        "totals": costs.totals(run),
        "parameters": sources.parameters(run),
        "evaluations": evaluations,
        "steps": steps,
        "against": against,
        "ablations": ablations,
        "scale": _scale(evaluations),
        "change_scale": _change_scale([*steps, *against, *ablations]),
        "token_data": _token_data,
        "box": curves.BOX,
    }


def _scale(evaluations: Evaluations) -> curves.Axis:
    """The axis of accuracies: round ends around every interval."""
    shares = [0.5]
    for e in evaluations.by_model.values():
        both = [e.accuracy, *([e.greedy_accuracy] if e.greedy_accuracy else [])]
        shares += [share for estimate in both for share in (estimate.low, estimate.high)]
    return curves.axis(shares, ticks=6)


def _change_scale(comparisons: Sequence[Comparison]) -> curves.Axis:
    """One axis for all differences, zero included."""
    ends = [0.0]
    for c in comparisons:
        ends += [c.difference.low, c.difference.high] if c.difference else []
    return curves.axis(ends, ticks=4, least=0.02)


def _token_data(solution: searches.Solution) -> list[dict[str, Any]]:
    """What the page's script says of each token."""
    return [asdict(token) for token in solution.tokens]


def seeds(run_dirs: Sequence[Path], against: str = "") -> str:
    """The differences to the SFT model over runs with other seeds, as a Markdown table.

    One row per later stage that every run has evaluated; see `evals.statistics.OverSeeds` for what
    the two intervals claim. Where nothing is fine-tuned, or `against` names a stage, every model
    that is evaluated is held against that stage's, or the first one's.

    Raises:
        PhikitError: a run has no evaluated SFT stage, or no later stage is in all of them.
    """
    if against or not Run(run_dirs[0]).of("train.sft"):
        return arms.table(run_dirs, against)
    found = []
    for run_dir in run_dirs:
        evaluations = Evaluations(Run(run_dir))
        if evaluations.sft is None:
            raise PhikitError(f"{run_dir}: no SFT stage is evaluated yet")
        found.append((evaluations.sft, evaluations.chain))
    start, chain = found[0]
    later = [e.model.name for e in chain[chain.index(start) + 1 :]]
    rows = []
    for name in later:
        ends = [next((e for e in other if e.model.name == name), None) for _, other in found]
        pairs = [(sft.means, e.means) for (sft, _), e in zip(found, ends, strict=True) if e]
        if len(pairs) == len(found):
            rows.append((name, over_seeds(pairs)))
    if not rows:
        raise PhikitError("no stage after SFT is evaluated in all of the runs")
    head = ["stage", *(p.resolve().name for p in run_dirs), "mean", "95 % (these models)", "p",
            "95 % (a new seed)", "finding"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for name, result in rows:
        d, new = result.pooled, result.seeds
        lines.append(
            [name, *(points(r.value) for r in result.runs), points(d.value),
             f"{points(d.low)} to {points(d.high)}", p_value(d.p),
             f"{points(new.low)} to {points(new.high)}", d.finding]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def figure(run_dir: Path, path: Path) -> Path:
    """Draws a run's summary as one picture, for a README: accuracies and a pivotal-token strip.

    Args:
        path: ends in .png or .svg.

    Raises:
        PhikitError: the run has no evaluation yet, or the picture's format is another.
    """
    from phikit.reporting import picture

    if path.suffix not in (".png", ".svg"):
        raise PhikitError(f"{path}: a picture is written as .png or .svg")
    run = Run(run_dir)
    evaluations = Evaluations(run)
    if not evaluations.chain:
        raise PhikitError(f"{run_dir}: no evaluation is done yet, so there is nothing to draw")
    found = [s for search in searches.searches(run) for s in search.solutions]
    picture.draw(evaluations, found[0] if found else None, path)
    return path
