"""The stage `data.documents`: cleans what one process can read in a sitting.

`data.corpus` does the same, shard by shard, for what it cannot.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.data.decontaminate import Decontaminator, item_text
from phikit.data.dedup import DedupConfig, Deduplicator
from phikit.data.filters import FilterConfig, TrigramModel, outliers, rejection
from phikit.data.item_index import DecontaminationConfig
from phikit.data.readers import Broken, ReaderConfig, read
from phikit.files import LineFile
from phikit.records import Document, Sample, iter_records, read_records, write_records
from phikit.stage import Config, Context, Estimate, Stage

_AT_ONCE = 1 << 20  # characters compared with the items at once
_EXCERPT = 300  # characters of a rejected document that are kept for reading
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
    filters: FilterConfig = Field(default_factory=FilterConfig)
    dedup: DedupConfig = Field(default_factory=DedupConfig)
    decontamination: DecontaminationConfig = Field(default_factory=DecontaminationConfig)


class _Ledger:
    """What was rejected, why, and how much of each source came through."""

    def __init__(self, lines: LineFile) -> None:
        self.lines = lines
        self.rejected: dict[str, Counter[str]] = defaultdict(Counter)
        self.read: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.kept_chars: Counter[str] = Counter()

    def reject(self, document: Document, reason: str, **more: Any) -> None:
        name = f"{document.meta.get('path', '')}:{document.meta.get('name', '')}"
        self.rejected[document.source][reason] += 1
        self.lines.add(
            {"reason": reason, "source": document.source, "name": name, "id": document.id,
             "excerpt": document.text[:_EXCERPT], **more}
        )  # fmt: skip

    def set_aside(self, broken: Broken) -> None:
        self.rejected["(unreadable)"][broken.reason] += 1
        self.lines.add(
            {"reason": broken.reason, "source": "(unreadable)", "name": broken.name,
             "excerpt": broken.excerpt[:_EXCERPT]}
        )  # fmt: skip

    def keep(self, document: Document) -> None:
        self.kept[document.source] += 1
        self.kept_chars[document.source] += len(document.text)

    def by_source(self) -> dict[str, Row]:
        return {
            source: {
                "read": self.read[source],
                "kept": self.kept[source],
                "chars": self.kept_chars[source],
                "rejected": dict(sorted(self.rejected[source].items())),
            }
            for source in sorted({*self.read, *self.rejected})
        }


def run_documents(
    ctx: Context, settings: DocumentsConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Two passes, so that only signatures and counts, never all texts, are in memory.

    The first reads, filters and spills to a scratch file, while gathering what must be known of
    all documents together: duplicates, usual trigrams, common n-grams. The second judges by that.
    """
    items = read_records(inputs["items"] / "items.parquet", Sample)
    decontaminator = Decontaminator(((i.id, item_text(i)) for i in items), settings.decontamination)
    gathered = _Gathered(settings, ctx.seed, decontaminator)
    with (
        LineFile(ctx.dir / "rejected.jsonl") as rejected,
        LineFile(ctx.dir / "contamination.jsonl") as contamination,
    ):
        ledger = _Ledger(rejected)
        scratch = ctx.dir / ".candidates.parquet"
        count = write_records(scratch, _first_pass(ctx, settings, gathered, ledger), Document)
        gathered.finish()
        allowed = decontaminator.settle()
        verdicts = gathered.verdicts(scratch)

        def second_pass() -> Iterator[Document]:
            for number, document in enumerate(iter_records(scratch, Document)):
                if number % 500 == 0:
                    ctx.progress.update(count + number, 2 * count)
                # contamination first: its ledger must be complete
                if number in gathered.suspects and (found := decontaminator.check(document.text)):
                    contamination.add(found.row(document.id))
                    findings[found.verdict] += 1
                    if found.verdict == "contaminated":
                        ledger.reject(document, "contaminated", item=found.item, rule=found.rule)
                        continue
                if number in verdicts:
                    reason, more = verdicts[number]
                    ledger.reject(document, reason, **more)
                    continue
                ledger.keep(document)
                yield document

        findings: Counter[str] = Counter()
        kept = write_records(ctx.dir / "documents.parquet", second_pass(), Document)
        scratch.unlink()
    return {
        # the library's text depends on Python's version, which no setting names
        "root": settings.reader.root,
        "python": platform.python_version(),
        "documents": kept,
        "chars": sum(ledger.kept_chars.values()),
        "by_source": ledger.by_source(),
        "unreadable": sum(ledger.rejected["(unreadable)"].values()),
        "duplicates": sum(reason.endswith("duplicate") for reason, _ in verdicts.values()),
        "contaminated": findings["contaminated"],
        "partial": findings["partial"],
        "items": len(items),
        "allowed": allowed,
    }


def _first_pass(
    ctx: Context, settings: DocumentsConfig, gathered: _Gathered, ledger: _Ledger
) -> Iterator[Document]:
    chars: Counter[str] = Counter()
    limit = settings.max_chars_per_source
    for number, document in enumerate(read(settings.reader)):
        if number % 500 == 0:
            # how many there will be is not known: approach one half
            ctx.progress.update(number, 2 * number + 10_000, documents=number)
        if isinstance(document, Broken):
            ledger.set_aside(document)
            continue
        if chars[document.source] >= limit:
            continue
        ledger.read[document.source] += 1
        if reason := rejection(document, settings.filters):
            ledger.reject(document, reason)
            continue
        chars[document.source] += len(document.text)
        gathered.add(document)
        yield document


class _Gathered:
    """What must be known of all documents that passed the filters, by their number."""

    def __init__(
        self, settings: DocumentsConfig, seed: int, decontaminator: Decontaminator
    ) -> None:
        self.settings = settings
        self.dedup = Deduplicator(settings.dedup, seed)
        self.trigrams: dict[str, TrigramModel] = defaultdict(TrigramModel)
        self.decontaminator = decontaminator
        self.suspects: set[int] = set()
        self.ids: list[str] = []
        self._waiting: list[str] = []
        self._waiting_chars = 0

    def add(self, document: Document) -> None:
        self.ids.append(document.id)
        self.dedup.add(document.text)
        self.trigrams[document.source].add(document.text)
        self._waiting.append(document.text)
        self._waiting_chars += len(document.text)
        if self._waiting_chars >= _AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Counts the texts that wait for it; after the last one, before anything is asked."""
        first = len(self.ids) - len(self._waiting)
        self.suspects.update(first + n for n in self.decontaminator.count(self._waiting))
        self._waiting.clear()
        self._waiting_chars = 0

    def verdicts(self, scratch: Path) -> dict[int, tuple[str, Row]]:
        """Number of a document to be rejected → reason, and what to note with it."""
        found: dict[int, tuple[str, Row]] = {}
        exact = self.dedup.exact()
        for cluster in self.dedup.clusters():
            first = cluster.members[0]
            for number, similarity in zip(cluster.members[1:], cluster.similarity[1:], strict=True):
                reason = "exact duplicate" if exact[number] != number else "near duplicate"
                found[number] = reason, {"of": self.ids[first], "similarity": similarity}
        for number, bits in self._outliers(scratch).items():
            found.setdefault(number, ("unusual trigrams", {"bits": bits}))
        return found

    def _outliers(self, scratch: Path) -> dict[int, float]:
        numbers: dict[str, list[int]] = defaultdict(list)
        surprises: dict[str, list[float]] = defaultdict(list)
        for number, document in enumerate(iter_records(scratch, Document)):
            numbers[document.source].append(number)
            surprises[document.source].append(
                self.trigrams[document.source].surprise(document.text)
            )
        found: dict[int, float] = {}
        for source, values in surprises.items():
            flags = outliers(values, self.settings.filters.outlier_deviations)
            for number, bits, bad in zip(numbers[source], values, flags, strict=True):
                if bad:
                    found[number] = round(bits, 2)
        return found


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
    help="Reads organic documents, filters, deduplicates and decontaminates them.",
)
