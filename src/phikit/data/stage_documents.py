"""The stage `data.documents`: a corpus of one shard, with so much of each source at most."""

from __future__ import annotations

import json
import platform
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.data.corpus.build import Job, build, gather
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.units import Here
from phikit.data.dedup import DedupConfig
from phikit.data.filter_steps import FilteringConfig
from phikit.data.item_index import DecontaminationConfig
from phikit.data.readers import ReaderConfig
from phikit.files import LineFile, read_json
from phikit.stage import Config, Context, Estimate, Stage

Row = dict[str, Any]


class DocumentsConfig(Config):
    """Organic documents: read, filter, deduplicate, decontaminate."""

    reader: ReaderConfig = Field(default_factory=ReaderConfig)
    max_chars_per_source: int = Field(
        default=4_000_000,
        gt=0,
        description="of each source class, documents are read until those that passed the filters "
        "hold so many characters; this bounds time and memory",
    )
    filters: FilteringConfig = Field(default_factory=FilteringConfig)
    dedup: DedupConfig = Field(default_factory=DedupConfig)
    decontamination: DecontaminationConfig = Field(default_factory=DecontaminationConfig)


def run_documents(
    ctx: Context, settings: DocumentsConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Builds the corpus in a scratch folder, and keeps its documents and what was rejected."""
    config = CorpusConfig(
        reader=settings.reader,
        filters=settings.filters,
        dedup=settings.dedup,
        decontamination=settings.decontamination,
    )
    items = inputs["items"] / "items.parquet"
    job = Job((), config, items, chars_per_source=settings.max_chars_per_source)
    scratch = ctx.dir / ".corpus"
    build(
        job,
        scratch,
        Here(),
        lambda step, done, total: ctx.progress.update(done, total, step=step),
    )
    documents = gather(scratch, ctx.dir / "documents.parquet")
    with LineFile(ctx.dir / "rejected.jsonl") as rejected:
        for row in _rejected(scratch):
            rejected.add(row)
    shutil.copyfile(
        scratch / "4-kept" / "00000" / "contamination.jsonl", ctx.dir / "contamination.jsonl"
    )
    by_source = _by_source(scratch)
    judged = read_json(scratch / "4-kept" / "00000" / "counts.json")
    shutil.rmtree(scratch)
    reasons: Counter[str] = Counter()
    for row in by_source.values():
        reasons.update(row["rejected"])
    return {
        # the library's text depends on Python's version, which no setting names
        "root": settings.reader.root,
        "python": platform.python_version(),
        "documents": documents,
        "chars": sum(row["chars"] for row in by_source.values()),
        "by_source": by_source,
        "unreadable": sum(by_source.get("(unreadable)", {"rejected": {}})["rejected"].values()),
        "duplicates": sum(n for reason, n in reasons.items() if reason.endswith("duplicate")),
        "contaminated": judged["rejected"].get("contaminated", 0),
        "partial": judged["rejected"].get("partial", 0),
        "items": judged["items"],
        "allowed": judged["allowed"],
    }


def _rejected(corpus: Path) -> Iterator[Row]:
    """What the filters rejected, then what was judged by all documents together."""
    for step in ("1-clean", "4-kept"):
        with (corpus / step / "00000" / "rejected.jsonl").open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def _by_source(corpus: Path) -> dict[str, Row]:
    """How much of each source was read and came through, and why the rest did not."""
    read = read_json(corpus / "1-clean" / "00000" / "counts.json")["read"]
    kept = read_json(corpus / "4-kept" / "00000" / "counts.json")
    rejected: dict[str, Counter[str]] = defaultdict(Counter)
    for row in _rejected(corpus):
        rejected[row["source"]][row["reason"]] += 1
    return {
        source: {
            "read": read.get(source, 0),
            "kept": kept["kept"].get(source, 0),
            "chars": kept["chars"].get(source, 0),
            "rejected": dict(sorted(rejected[source].items())),
        }
        for source in sorted({*read, *rejected})
    }


def _estimate(settings: DocumentsConfig) -> Estimate:
    """About 0.7 MB of text per second and core; the library holds about 10 MB in three classes."""
    chars = min(3 * settings.max_chars_per_source, settings.max_chars_per_source + 2_000_000)
    return Estimate(f"up to {chars / 1e6:.0f} M characters", chars / 0.7e6)


DOCUMENTS: Stage[DocumentsConfig] = Stage(
    verb="data.documents",
    config=DocumentsConfig,
    run=run_documents,
    inputs=("items",),
    estimate=_estimate,
    reads=lambda settings: [settings.reader.root] if settings.reader.root else [],
    help="read organic documents; filter, deduplicate and decontaminate them",
)
