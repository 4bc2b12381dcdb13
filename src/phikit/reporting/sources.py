"""What the model was made from: the mixture, the synthetic types, contamination, one lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phikit.records import Document, Sample
from phikit.reporting.run_dir import Done, Run

EXCERPT = 700  # characters of a document or a sample that are shown


@dataclass(frozen=True)
class Source:
    """One source class of a mixture. What a run's summary does not state is None."""

    name: str
    tokens: int
    share: float
    unique: int | None
    epochs: float | None
    documents: int | None


@dataclass(frozen=True)
class Mixture:
    """The data of one pretraining or midtraining stage."""

    stage: Done
    sources: tuple[Source, ...]
    tokens: int


@dataclass(frozen=True)
class Excerpt:
    """Something real to read: where it is from, and its text."""

    kind: str
    origin: str
    parts: tuple[tuple[str, str], ...]
    verdict: str
    id: str


@dataclass(frozen=True)
class MadeFrom:
    """Everything that the data section shows."""

    mixtures: tuple[Mixture, ...]
    types: tuple[Mapping[str, Any], ...]
    organic: tuple[Mapping[str, Any], ...]
    excerpts: tuple[Excerpt, ...]


def made_from(run: Run) -> MadeFrom | None:
    """What a run's data consists of; None when no data stage is done."""
    found = MadeFrom(
        tuple(mixtures(run)), tuple(synthetic_types(run)), tuple(organic(run)),
        tuple(excerpts(run)),
    )  # fmt: skip
    return found if found.mixtures or found.types or found.organic else None


def mixtures(run: Run) -> list[Mixture]:
    """What each `data.shards` stage mixed, largest source first."""
    found = []
    for stage in run.of("data.shards"):
        raw: Mapping[str, Mapping[str, Any]] = stage.summary.get("sources", {})
        total = sum(int(s["tokens"]) for s in raw.values())
        rows = [
            Source(
                name=name,
                tokens=int(s["tokens"]),
                share=int(s["tokens"]) / max(total, 1),
                unique=s.get("unique_tokens"),
                epochs=s.get("epochs"),
                documents=s.get("documents"),
            )
            for name, s in raw.items()
        ]
        rows.sort(key=lambda s: (-s.tokens, s.name))
        found.append(Mixture(stage, tuple(rows), total))
    return found


def synthetic_types(run: Run) -> list[dict[str, Any]]:
    """Per synthesis stage and dataset type: how many were asked for, kept and turned away."""
    found = []
    for stage in run.stages:
        for kind, counts in stage.summary.get("types", {}).items():
            refused = {k: n for k, n in counts.items() if k not in ("asked", "accepted") and n}
            found.append(
                {
                    "stage": stage.name,
                    "kind": kind,
                    "accepted": counts.get("accepted", 0),
                    "asked": counts.get("asked", 0),
                    "refused": refused,
                }
            )
    return found


def organic(run: Run) -> list[dict[str, Any]]:
    """Per source of the documents stage: how many were read, kept and turned away, and why."""
    found = []
    for stage in run.of("data.documents"):
        for name, counts in stage.summary.get("by_source", {}).items():
            found.append({"stage": stage.name, "name": name, **counts})
    return found


def excerpts(run: Run, per_kind: int = 1, most: int = 20) -> list[Excerpt]:
    """A document of every source and a sample of every dataset type."""
    found: list[Excerpt] = []
    for stage in run.of("data.documents"):
        found += [_document(d) for d in _firsts(_some(stage, Document), "source", per_kind)]
    for stage in run.stages:
        if stage.verb.startswith("synth.") and (stage.folder / "samples.parquet").exists():
            found += [_sample(s, stage) for s in _firsts(_some(stage, Sample), "kind", per_kind)]
    seen: set[str] = set()
    fresh = [e for e in found if not (e.kind in seen or seen.add(e.kind))]  # type: ignore[func-returns-value]
    return fresh[:most]


def _firsts(records: list[Any], field: str, most: int) -> list[Any]:
    groups: dict[str, list[Any]] = {}
    for record in records:
        group = groups.setdefault(getattr(record, field), [])
        if len(group) < most:
            group.append(record)
    return [record for name in sorted(groups) for record in groups[name]]


def _some(stage: Done, cls: type[Any]) -> list[Any]:
    return stage.records("documents.parquet" if cls is Document else "samples.parquet", cls)


def _document(document: Document) -> Excerpt:
    name = str(document.meta.get("name") or document.meta.get("path") or "")
    return Excerpt(
        kind=document.source,
        origin=f"document {name}".strip(),
        parts=(("text", _cut(document.text)),),
        verdict="",
        id=document.id,
    )


def _sample(sample: Sample, stage: Done) -> Excerpt:
    parts = tuple((m["role"], _cut(m["content"])) for m in sample.messages)
    verdict = "; ".join(f"{v.verifier}: {'passed' if v.passed else v.reason}"
                        for v in sample.verdicts)  # fmt: skip
    thought = ", with a thought" if "<think>" in sample.response else ""
    return Excerpt(
        kind=sample.kind + thought,
        origin=f"{sample.source}, from {stage.name}",
        parts=parts or (("text", _cut(sample.text)),),
        verdict=verdict,
        id=sample.id,
    )


def _cut(text: str) -> str:
    return text if len(text) <= EXCERPT else text[:EXCERPT].rstrip() + " …"


# --- Contamination -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contamination:
    """What was found of the evaluation items in the training data, and taken out of it."""

    checks: tuple[Mapping[str, Any], ...]
    rules: Mapping[str, int]
    examples: tuple[Mapping[str, Any], ...]


def contamination(run: Run) -> Contamination | None:
    """The ledgers of all stages that kept one; None when no stage did."""
    checks: list[Mapping[str, Any]] = []
    rules: dict[str, int] = {}
    examples: list[Mapping[str, Any]] = []
    for stage in run.stages:
        if stage.verb == "synth.items":
            continue  # the items themselves
        ledger = stage.folder / "contamination.jsonl"
        proof = stage.summary.get("disjointness", {})
        if not ledger.exists() and not proof:
            continue
        rows = stage.rows("contamination.jsonl")
        removed = [row for row in rows if row["verdict"] == "contaminated"]
        for row in rows:
            rules[row["rule"]] = rules.get(row["rule"], 0) + 1
        examples += [
            {**row, "stage": stage.name, "text": _cut(row["text"]),
             "item_text": _cut(row["item_text"])}
            for row in [*removed, *(row for row in rows if row not in removed)][:3]
        ]  # fmt: skip
        checks.append(
            {
                "stage": stage.name,
                "compared": proof.get("compared", _compared(stage)),
                "dropped": proof.get("dropped", 0) + len(removed),
                "noted": len(rows) - len(removed),
            }
        )
    return Contamination(tuple(checks), rules, tuple(examples[:6])) if checks else None


def _compared(stage: Done) -> int | None:
    """How many texts a data stage read, which is how many it compared."""
    groups = stage.summary.get("by_source") or stage.summary.get("by_kind") or {}
    return sum(group["read"] for group in groups.values()) if groups else None


# --- Lineage -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """One step on a sample's way: `what` it is, its id or address, and a line about it."""

    what: str
    id: str
    about: str
    text: str = ""


def lineage(run: Run) -> list[Link]:
    """The way of one sample, from its document to the last checkpoint that it went into.

    A sample with a parent document that was also fine-tuned on is preferred.
    """
    documents = {
        d.id: d for s in run.of("data.documents") for d in s.records("documents.parquet", Document)
    }
    best: tuple[int, Done, Sample] | None = None
    for stage in run.stages:
        if not (stage.folder / "samples.parquet").exists():
            continue
        tuned = any(s.verb == "train.sft" for s in run.consumers(stage.name))
        for sample in stage.records("samples.parquet", Sample):
            rank = 2 * bool(set(sample.parents) & documents.keys()) + tuned
            if best is None or rank > best[0]:
                best = (rank, stage, sample)
            if rank == 3:
                break
    if best is None:
        return []
    _, stage, sample = best
    links = [_document_link(documents[p]) for p in sample.parents if p in documents]
    links.append(_sample_link(sample, stage))
    for consumer in run.consumers(stage.name):
        if consumer.verb in ("data.shards", "export.hf") or consumer in run.chain:
            links.append(_stage_link(consumer))
    return links


def _document_link(document: Document) -> Link:
    origin = ", ".join(str(document.meta[k]) for k in ("name", "path") if k in document.meta)
    about = "; ".join(part for part in (document.source, origin, document.licence) if part)
    return Link("Document", document.id, about, _cut(document.text))


def _sample_link(sample: Sample, stage: Done) -> Link:
    made = [str(sample.meta[k]) for k in ("teacher", "stream", "index") if k in sample.meta]
    about = f"{sample.kind}, written by {stage.name}" + (f" ({' / '.join(made)})" if made else "")
    passed = [v.verifier for v in sample.verdicts if v.passed]
    about += f"; passed {', '.join(passed)}" if passed else ""
    turns = "\n\n".join(f"{m['role']}: {m['content']}" for m in sample.messages)
    return Link("Sample", sample.id, about, _cut(turns or sample.text))


def _stage_link(stage: Done) -> Link:
    what = "Shards" if stage.verb == "data.shards" else "Checkpoint"
    what = "Export" if stage.verb == "export.hf" else what
    parents = ", ".join(dict.fromkeys(stage.parents))
    return Link(what, stage.address, f"{stage.name}, made from {parents}")


def parameters(run: Run) -> int | None:
    """The number of parameters of the final model, from the shapes in its safetensors header."""
    for stage in reversed(run.chain):
        path = stage.folder / "model" / "model.safetensors"
        if path.exists():
            return _count(path)
    return None


def _count(path: Path) -> int:
    with path.open("rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for side in tensor["shape"]:
                size *= side
            total += size
    return total
