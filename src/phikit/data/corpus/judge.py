"""What all shards together say of a shard's documents: which of them stay.

Two quantities are gathered over all shards first: how often the evaluation items' n-grams occur
(the allow-list rests on it), and how usual letters are in each class of documents (outliers).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from phikit.data.corpus.clean import decontaminator_of, rejection_line
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.duplicates import REASONS
from phikit.data.decontaminate import Sharing
from phikit.data.filters import TrigramModel, outlier_limit
from phikit.files import LineFile, read_json, write_json
from phikit.records import Document, iter_records, write_records


def shared(folder: Path, shards: list[str], items: str, settings: dict[str, Any]) -> None:
    """The unit that counts in how many texts each n-gram of the items was found."""
    decontaminator = decontaminator_of(items, CorpusConfig.model_validate(settings))
    for shard in shards:
        decontaminator.count_shared(_sharing(Path(shard)))
    long, short = decontaminator.counts
    np.savez(folder / "counts.npz", long=long, short=short)


def _sharing(shard: Path) -> Sharing:
    with np.load(shard / "sharing.npz", allow_pickle=False) as held:
        return Sharing(*(held[f.name] for f in fields(Sharing)))


def letters(folder: Path, shard: str) -> None:
    """The unit that counts a shard's trigrams, by class."""
    models: dict[str, TrigramModel] = defaultdict(TrigramModel)
    for document in iter_records(Path(shard) / "documents.parquet", Document):
        models[document.source].add(document.text)
    counts: dict[str, Any] = {source: model.counts for source, model in models.items()}
    np.savez(folder / "trigrams.npz", **counts)


def surprise(folder: Path, shard: str, counted: list[str]) -> None:
    """The unit that says how unusual each document of a shard is among all of its class."""
    models: dict[str, TrigramModel] = defaultdict(TrigramModel)
    for other in counted:
        with np.load(Path(other) / "trigrams.npz", allow_pickle=False) as held:
            for source in held.files:
                models[source].add_counts(held[source])
    sources: list[str] = []
    bits: list[float] = []
    for document in iter_records(Path(shard) / "documents.parquet", Document):
        sources.append(document.source)
        bits.append(models[document.source].surprise(document.text))
    names = sorted(set(sources))
    np.savez(
        folder / "surprise.npz",
        bits=np.array(bits, np.float32),
        sources=np.array([names.index(s) for s in sources], np.int64),
        names=np.array(names, np.str_),
    )


def limits(folder: Path, surprises: list[str], settings: dict[str, Any]) -> None:
    """The unit that fixes, for each class, from which surprise on a document is an outlier."""
    deviations = CorpusConfig.model_validate(settings).filters.limits.outlier_deviations
    values: dict[str, list[Any]] = defaultdict(list)
    for path in surprises:
        with np.load(Path(path) / "surprise.npz", allow_pickle=False) as held:
            for number, name in enumerate(held["names"].tolist()):
                values[name].append(held["bits"][held["sources"] == number])
    found = {
        name: outlier_limit(np.concatenate(parts), deviations)
        for name, parts in sorted(values.items())
    }
    write_json(folder / "limits.json", {n: v for n, v in found.items() if np.isfinite(v)})


def judge(
    folder: Path, shard: str, begin: int, joined: str, settings: dict[str, Any],
    items: str = "", found: str = "", surprised: str = "", limited: str = "",
) -> None:  # fmt: skip
    """The unit of a shard: its documents that stay, and why the others do not.

    Args:
        begin: the number of the shard's first document among all.
        joined, found, surprised, limited: folders of the units `join`, `shared`, `surprise` (of
            this shard) and `limits`; empty ones are left out.
    """
    config = CorpusConfig.model_validate(settings)
    against = _Findings.read(shard, begin, joined, surprised, limited)
    decontaminator, compared = None, {}
    if items:
        decontaminator = decontaminator_of(items, config)
        with np.load(Path(found) / "counts.npz", allow_pickle=False) as held:
            allowed = decontaminator.settle_with(held["long"], held["short"])
        compared = {"items": len(decontaminator.items), "allowed": allowed}
    suspects = set(_sharing(Path(shard)).numbers.tolist()) if decontaminator else set()
    counts: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    chars: Counter[str] = Counter()
    with (
        LineFile(folder / "rejected.jsonl") as rejected,
        LineFile(folder / "contamination.jsonl") as ledger,
    ):

        def stay() -> Iterator[Document]:
            for number, document in enumerate(
                iter_records(Path(shard) / "documents.parquet", Document)
            ):
                reason, more = against.reason(number)
                # also of one that goes anyway: the ledger of contamination must be complete
                hit = decontaminator and number in suspects and decontaminator.check(document.text)
                if hit:
                    ledger.add(hit.row(document.id))
                    counts[hit.verdict] += 1
                    if hit.verdict == "contaminated":
                        reason, more = "contaminated", {"item": hit.item, "rule": hit.rule}
                if reason:
                    counts[f"{document.source} {reason}"] += 1
                    rejected.add(rejection_line(document, reason, **more))
                    continue
                kept[document.source] += 1
                chars[document.source] += len(document.text)
                yield document

        total = write_records(folder / "documents.parquet", stay(), Document)
    write_json(
        folder / "counts.json",
        {"documents": total, "kept": dict(kept), "chars": dict(chars), "rejected": dict(counts),
         **compared},
    )  # fmt: skip


@dataclass(frozen=True)
class _Findings:
    """What the other units found against a shard's documents; an entry each, in their order."""

    stands_for: np.ndarray
    similarity: np.ndarray
    reasons: np.ndarray
    bits: np.ndarray
    unusual: np.ndarray

    @classmethod
    def read(cls, shard: str, begin: int, joined: str, surprised: str, limited: str) -> _Findings:
        size = len(np.load(Path(shard) / "sizes.npy"))
        stands_for, similarity, reasons = (
            np.load(Path(joined) / f"{name}.npy", mmap_mode="r")[begin : begin + size]
            for name in ("kept", "similarity", "reasons")
        )
        return cls(stands_for, similarity, reasons, *_unusual(surprised, limited, size))

    def reason(self, number: int) -> tuple[str, dict[str, Any]]:
        """Why a document goes, as a rejection's reason and its figures; empty when it stays."""
        if reason := REASONS[self.reasons[number]]:
            return reason, {"of": int(self.stands_for[number]),
                            "similarity": round(float(self.similarity[number]), 3)}  # fmt: skip
        if self.unusual[number]:
            return "unusual trigrams", {"bits": round(float(self.bits[number]), 2)}
        return "", {}


def _unusual(surprised: str, limited: str, count: int) -> tuple[Any, Any]:
    """Each document's surprise, and whether it is beyond its class's limit."""
    if not surprised:
        return np.zeros(count), np.zeros(count, np.bool_)
    bounds = read_json(Path(limited) / "limits.json")
    with np.load(Path(surprised) / "surprise.npz", allow_pickle=False) as held:
        most = np.array([bounds.get(n, np.inf) for n in held["names"].tolist()], np.float64)
        bits = held["bits"]
        return bits, bits > (most[held["sources"]] if len(most) else 0)
