"""The stages `synth.annotate` and `synth.quality`: a teacher grades some texts, a classifier all.

annotations.jsonl   an excerpt, its document's id, and each reading's grades
classifier.npz      what was learnt (`synth.quality`)
documents.parquet   the documents that are good enough, with `quality` in their meta
rejected.jsonl      those that are not
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import LineFile, explain_os_errors
from phikit.records import Document, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.synth import quality, rubrics
from phikit.synth.remote_teacher import Endpoint
from phikit.synth.replies import ReplyStore
from phikit.synth.seeds import SeedConfig, documents_at, excerpts
from phikit.synth.teachers import teacher_of

_EXCERPT = 300  # characters of a rejected document that are kept for reading


class AnnotateConfig(Config):
    """Which texts are graded, and by whom.

    Attributes:
        annotator: "teacher", or "rules": the program of `rubrics.by_rules`.
        count: excerpts to grade, one from each document.
        words: of an excerpt, at most.
        readings: times that a teacher grades each; the second measures its agreement with itself.
        store: a file where replies are kept.
        local: a model on this machine in place of an endpoint.
        batch: answers that a model in this process generates at once.
    """

    annotator: Literal["teacher", "rules"] = "teacher"
    count: int = Field(default=500, ge=10)
    words: int = Field(default=150, ge=20)
    readings: int = Field(default=2, ge=1)
    store: str = ""
    local: str = ""
    batch: int = Field(default=64, ge=1)
    teacher: Endpoint = Field(default_factory=Endpoint)


def run_annotate(
    ctx: Context, config: AnnotateConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes annotations.jsonl."""
    chosen = _excerpts(config, inputs["documents"], ctx.seed)
    if config.annotator == "rules":
        grades: list[list[rubrics.Grade]] = [[rubrics.by_rules(text)] for _, text in chosen]
        lost = 0
    else:
        store = ReplyStore(Path(config.store) if config.store else ctx.dir / "replies.jsonl")
        grades, lost = asyncio.run(_ask(ctx, config, inputs, [t for _, t in chosen], store))
        ctx.cost.tokens_generated += store.completion_tokens
    with LineFile(ctx.dir / "annotations.jsonl") as lines:
        for (name, text), given in zip(chosen, grades, strict=True):
            if given:
                row = {"id": name, "text": text, "grades": [asdict(g) for g in given]}
                lines.add({**row, "annotator": config.annotator})
    graded = [g for g in grades if g]
    return {
        "graded": len(graded),
        "annotator": config.annotator,
        "without_grades": len(grades) - len(graded),
        "readings_lost": lost,
        **_agreement(graded),
    }


def _excerpts(config: AnnotateConfig, folder: Path, seed: int) -> list[tuple[str, str]]:
    """(document's id, the first excerpt) of documents in an order drawn from the seed."""
    settings = SeedConfig(excerpt_words=config.words, least_words=20, per_document=1)
    every = [
        (d.id, found[0]) for d in documents_at(folder) if (found := excerpts(d.text, settings))
    ]
    if len(every) < 10:
        raise PhikitError(f"{folder}: only {len(every)} documents have 20 words or more")
    Random(f"{seed}/annotate").shuffle(every)
    return every[: config.count]


async def _ask(
    ctx: Context,
    config: AnnotateConfig,
    inputs: Mapping[str, Path],
    texts: Sequence[str],
    store: ReplyStore,
) -> tuple[list[list[rubrics.Grade]], int]:
    """(each text's grades, readings that came to nothing)."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        teacher = await stack.enter_async_context(teacher_of(config, inputs, store, ctx.seed))
        done = 0

        async def one(text: str, reading: int) -> rubrics.Grade | None:
            nonlocal done
            outcome = await teacher.ask(rubrics.request(text, 1 + reading))
            done += 1
            ctx.progress.update(done, len(texts) * config.readings)
            return rubrics.read(outcome.value) if outcome.status == "accepted" else None

        async def all_of(text: str) -> list[rubrics.Grade | None]:
            return list(await asyncio.gather(*(one(text, r) for r in range(config.readings))))

        readings = await asyncio.gather(*map(all_of, texts))
    grades = [[g for g in of if g is not None] for of in readings]
    return grades, sum(g is None for of in readings for g in of)


def _agreement(graded: Sequence[Sequence[rubrics.Grade]]) -> dict[str, Any]:
    """How far the first two readings of a text agree, by scale; nothing without second ones."""
    twice = [g for g in graded if len(g) > 1]
    if not twice:
        return {}
    found: dict[str, Any] = {"graded_twice": len(twice)}
    for name in rubrics.SCALES:
        a, b = ([float(getattr(g[i], name)) for g in twice] for i in (0, 1))
        same = [x == y for x, y in zip(a, b, strict=True)]
        found[name] = {
            "equal": round(sum(same) / len(same), 4),
            "within_one": round(float(np.mean(np.abs(np.subtract(a, b)) <= 1)), 4),
            "rank": round(quality.spearman(a, b), 4),
        }
    return found


class QualityConfig(Config):
    """What is learnt, and how much is let through.

    Attributes:
        scale: which grade is learnt; "total" is the mean of the three.
        good: a grade from which on a text is good; 0 takes the best `good_share`.
        good_share: of the annotated texts, as nearly as their grades allow, when `good` is 0.
        held_out: the share of the annotated texts that precision and recall are measured on.
        keep: the share of the corpus' characters to keep, best documents first (1 keeps all and
            only adds the scores).
    """

    scale: Literal["total", "educational", "reasoning", "density"] = "total"
    good: float = Field(default=0, ge=0, le=5)
    good_share: float = Field(default=0.3, gt=0, lt=1)
    held_out: float = Field(default=0.3, gt=0, lt=1)
    keep: float = Field(default=0.5, gt=0, le=1)


def run_quality(ctx: Context, config: QualityConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Learns, measures, scores every document, and keeps the best."""
    rows = _annotations(inputs["annotations"] / "annotations.jsonl")
    texts = [row["text"] for row in rows]
    grades = [_grade(row["grades"], config.scale) for row in rows]
    good = config.good or _good_from(grades, config.good_share)
    order = list(range(len(rows)))
    Random(f"{ctx.seed}/quality").shuffle(order)
    cut = max(1, round(config.held_out * len(rows)))
    held, learn = order[:cut], order[cut:]
    classifier = quality.fit([texts[i] for i in learn], [grades[i] for i in learn], good)
    measured = quality.measure(
        classifier, [texts[i] for i in held], [grades[i] for i in held], good
    )
    classifier.save(ctx.dir / "classifier.npz")
    kept = _select(ctx, config, inputs["documents"], classifier)
    return {
        "learnt_from": len(learn),
        "good_from": round(good, 3),
        **{f"held_out_{name}": value for name, value in _rounded(asdict(measured)).items()},
        **kept,
    }


def _good_from(grades: Sequence[float], share: float) -> float:
    """The grade from which on a share of the texts is good; grades are few, so about that share."""
    at = {g: sum(other >= g for other in grades) / len(grades) for g in set(grades)}
    return min(at, key=lambda g: (abs(at[g] - share), -g))


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}


def _annotations(path: Path) -> list[dict[str, Any]]:
    import json

    with explain_os_errors(path, "reading"), path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _grade(readings: Sequence[Mapping[str, int]], scale: str) -> float:
    values = [rubrics.Grade(**r) for r in readings]
    return float(np.mean([g.total if scale == "total" else getattr(g, scale) for g in values]))


def _select(
    ctx: Context, config: QualityConfig, folder: Path, classifier: quality.Classifier
) -> dict[str, Any]:
    """Scores in a first pass, writes in a second: texts are never all in memory."""
    scores: list[float] = []
    sizes: list[int] = []
    batch: list[str] = []

    def settle() -> None:
        scores.extend(classifier.scores(batch).tolist())
        batch.clear()

    for document in documents_at(folder):
        batch.append(document.text)
        sizes.append(len(document.text))
        if len(batch) == 512:
            settle()
            ctx.progress.update(len(scores), 2 * len(scores) + 1000)
    settle()
    best = np.argsort(-np.array(scores), kind="stable")
    ends = np.cumsum(np.array(sizes)[best])
    count = int(np.searchsorted(ends, config.keep * ends[-1])) + 1
    chosen = set(best[:count].tolist())
    threshold = min(scores[i] for i in chosen)
    with LineFile(ctx.dir / "rejected.jsonl") as rejected:

        def good_ones() -> Any:
            for number, document in enumerate(documents_at(folder)):
                score = round(scores[number], 4)
                if number in chosen:
                    yield replace(document, meta={**document.meta, "quality": score})
                    continue
                name = f"{document.meta.get('path', '')}:{document.meta.get('name', '')}"
                rejected.add(
                    {"reason": "low quality", "source": document.source, "name": name,
                     "id": document.id, "excerpt": document.text[:_EXCERPT], "quality": score}
                )  # fmt: skip

        kept = write_records(ctx.dir / "documents.parquet", good_ones(), Document)
    return {"scored": len(scores), "documents": kept, "threshold": round(threshold, 4)}


QUALITY_STAGES: list[Stage[Any]] = [
    Stage(
        verb="synth.annotate",
        config=AnnotateConfig,
        run=run_annotate,
        inputs=("documents", "model?"),
        resumable=True,
        estimate=lambda c: Estimate(f"{c.count} excerpts", c.count / 20),
        reads=lambda c: [c.local] if c.local else [],
        help="have a teacher grade excerpts by rubrics, for a classifier to learn from",
    ),
    Stage(
        verb="synth.quality",
        config=QualityConfig,
        run=run_quality,
        inputs=("documents", "annotations"),
        estimate=lambda c: Estimate("all documents of its input", 20),
        help="learn the grades with a small classifier, score all documents, keep the best",
    ),
]
