"""The stages `data.filter`, filters over documents, and `data.corpus`, a corpus of any size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.data.corpus.build import Job, build, gather
from phikit.data.corpus.clean import rejection_line
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.units import Here, Processes
from phikit.data.filter_steps import FilteringConfig, apply
from phikit.errors import PhikitError
from phikit.files import LineFile
from phikit.records import Document, iter_records, write_records
from phikit.stage import Context, Estimate, Stage


def run_filter(
    ctx: Context, settings: FilteringConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Keeps the documents that pass; the reasons of the others go to `rejected.jsonl`."""
    rejected: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    with LineFile(ctx.dir / "rejected.jsonl") as lines:

        def passed() -> Iterator[Document]:
            documents = iter_records(inputs["documents"] / "documents.parquet", Document)
            for number, document in enumerate(documents):
                if number % 500 == 0:
                    ctx.progress.update(number, 2 * number + 1000)
                outcome = apply(document, settings)
                if isinstance(outcome, str):
                    rejected[f"{document.source} {outcome}"] += 1
                    lines.add(rejection_line(document, outcome))
                    continue
                noted.update(outcome.meta.get("filters", {}).keys())
                yield outcome

        kept = write_records(ctx.dir / "documents.parquet", passed(), Document)
    return {
        "documents": kept,
        "rejected": dict(sorted(rejected.items())),
        "noted": dict(sorted(noted.items())),
    }


class CorpusStageConfig(CorpusConfig):
    """A corpus, and how many processes make it, which changes nothing of it."""

    paths: tuple[str, ...] = Field(default=(), description="files and folders to read")
    workers: int = Field(default=0, ge=0, description="processes; 0: as many as the run's threads")


def run_corpus(
    ctx: Context, settings: CorpusStageConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Builds the corpus in `corpus/`, and gathers its documents in one file for later stages."""
    if not settings.paths:
        raise PhikitError("data.corpus: no paths to read", "set paths to files and folders")
    config = CorpusConfig(**{name: getattr(settings, name) for name in CorpusConfig.model_fields})
    items = inputs["items"] / "items.parquet" if "items" in inputs else None
    job = Job(tuple(map(Path, settings.paths)), config, items)
    count = settings.workers or ctx.threads
    report = build(
        job,
        ctx.dir / "corpus",
        Processes(count) if count > 1 else Here(),
        lambda step, done, total: ctx.progress.update(done, total, step=step),
    )
    gather(ctx.dir / "corpus", ctx.dir / "documents.parquet")
    return report


FILTER: Stage[FilteringConfig] = Stage(
    verb="data.filter",
    config=FilteringConfig,
    run=run_filter,
    inputs=("documents",),
    estimate=lambda _: Estimate("all documents of its input", 30),
    help="keep the documents that pass the named filters, and note what these found",
)
CORPUS: Stage[CorpusStageConfig] = Stage(
    verb="data.corpus",
    config=CorpusStageConfig,
    run=run_corpus,
    inputs=("items?",),
    resumable=True,
    estimate=lambda _: Estimate("all files of its paths", 600),
    help="build a corpus of any size, shard by shard",
)
