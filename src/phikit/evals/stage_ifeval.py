"""The stage `evals.ifeval`: does a model still do as it is told?

IFEval's prompts (Zhou et al. 2023) make demands that a program can check ("no commas", "at least
300 words"). They have nothing to do with what a recipe trains on, so they show what it forgets.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.engine.base import Precision
from phikit.errors import PhikitError
from phikit.evals.statistics import accuracy
from phikit.evals.tasks import Asking, check_items
from phikit.files import cache_folder, explain_os_errors
from phikit.records import Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage


class IfevalConfig(Config):
    """How a model is asked; one greedy answer per prompt.

    Attributes:
        items: ask only so many of the 541 prompts, spread evenly over the file; 0 asks all.
        max_tokens: the longest answer. Short ones break demands for length: state it beside scores.
        batch: sequences generated at once.
        precision: of the weights; bf16 is faster where they are stored in f32.
        path: the file of prompts; where `phikit fetch ifeval` puts it when empty.
    """

    items: int = Field(0, ge=0)
    max_tokens: int = Field(1280, ge=1)
    batch: int = Field(64, ge=1)
    precision: Precision = "stored"
    path: str = ""


def read_prompts(path: Path) -> list[Sample]:
    """The prompts of a file in IFEval's form, in order.

    Raises:
        PhikitError: it is missing, or a line is none of IFEval's; names it.
    """
    if not path.exists():
        raise PhikitError(f"the prompts of IFEval are not here ({path})", "phikit fetch ifeval")
    with explain_os_errors(path, "reading"):
        lines = path.read_text(encoding="utf-8").split("\n")
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            demands = [
                # some copies of the file state every argument of every demand, most of them null
                {"id": name, "kwargs": {k: v for k, v in kwargs.items() if v is not None}}
                for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)
            ]
            prompt, key = row["prompt"], row["key"]
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise PhikitError(
                f"{path}:{number}: no prompt of IFEval ({type(e).__name__}: {e})",
                "delete the file's folder and fetch it again: phikit fetch ifeval",
            ) from e
        prompts.append(
            Sample(
                kind="ifeval",
                source="ifeval",
                messages=({"role": "user", "content": prompt},),
                verifier="instructions",
                answer=json.dumps(demands),
                meta={"key": key},
            )
        )
    return prompts


def run_ifeval(ctx: Context, config: IfevalConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Writes items.parquet and scores.parquet; returns accuracies with intervals."""
    from phikit.evals.stages import _generate, _load, _score, _thin

    path = Path(config.path) if config.path else cache_folder() / "ifeval" / "ifeval.jsonl"
    items = _thin(read_prompts(path), config.items)
    check_items(items, str(path))
    model, ask_as = _load(inputs["model"] / "model", "chat", precision=config.precision)
    asking = Asking(samples=0, max_tokens=config.max_tokens)
    answers = _generate(ctx, model, ask_as, items, asking, config.batch)
    write_records(ctx.dir / "items.parquet", items, Sample)
    scores = _score(ctx, answers)
    prompts = accuracy([float(s.verdict.passed) for s in scores])
    demands = {item.id: len(json.loads(item.answer)) for item in items}
    kept = sum(s.verdict.score * demands[s.item] for s in scores)
    return {
        "accuracy": prompts.value,
        "low": prompts.low,
        "high": prompts.high,
        "demands_kept": kept / sum(demands.values()),
        "mean_tokens": sum(s.cost for s in scores) / len(scores),
        "items": prompts.items,
        "max_tokens": config.max_tokens,
        "too_long": sum(a.rollout is None for a in answers),
    }


IFEVAL_STAGE: Stage[Any] = Stage(
    verb="evals.ifeval",
    config=IfevalConfig,
    run=run_ifeval,
    inputs=("model",),
    reads=lambda c: [c.path] if c.path else [],
    estimate=lambda c: Estimate(
        f"{c.items or 541} prompts, answers ≤ {c.max_tokens} tokens",
        seconds=2.0,
        generated=(c.items or 541) * c.max_tokens / 2,
    ),
    help="IFEval: demands on the answer's form that a program checks",
)
