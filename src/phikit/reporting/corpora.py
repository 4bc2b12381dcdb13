"""`phikit synth report`: what a synthetic corpus cost, what came of it, and what it covers.

Tokens of accepted samples are estimated from their characters, at the characters per token that the
teacher's own replies have.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from phikit.errors import PhikitError
from phikit.files import explain_os_errors, read_json
from phikit.records import Sample, read_records
from phikit.reporting.sheets import Block, Section, Sheet
from phikit.synth import diversity
from phikit.synth.declared_types import DeclaredType, read_types

_GOOD = ("accepted", "surplus")


@dataclass(frozen=True)
class Corpus:
    """A corpus as its folder holds it."""

    folder: Path
    record: Mapping[str, Any]
    rows: list[dict[str, Any]]
    accepted: list[Sample]
    rejected: list[Sample]
    replies: dict[str, dict[str, Any]]
    types: Mapping[str, DeclaredType]

    @property
    def characters_per_token(self) -> float:
        made = sum(r["completion_tokens"] for r in self.replies.values())
        return sum(len(r["text"]) for r in self.replies.values()) / made if made else 4.0

    def tokens(self, sample: Sample) -> float:
        """Of an accepted sample, about."""
        return len(sample.text) / self.characters_per_token


def read(folder: Path) -> Corpus:
    """A finished corpus.

    Raises:
        PhikitError: the folder holds none, or a file in it is corrupt.
    """
    if not (folder / "outcomes.jsonl").exists():
        raise PhikitError(
            f"{folder}: no synthetic corpus is here",
            "give the folder of `phikit synth run`, or of a synth.declared stage",
        )
    record = read_json(folder / "stage.json") if (folder / "stage.json").exists() else {}
    config = record.get("config", {})
    store = Path(config["store"]) if config.get("store") else folder / "replies.jsonl"
    replies = {f"{r['request']}.{r['attempt']}": r for r in lines(store)}
    own = Path(config["folder"]) if config.get("folder") else None
    return Corpus(
        folder,
        record,
        list(lines(folder / "outcomes.jsonl")),
        read_records(folder / "samples.parquet", Sample),
        read_records(folder / "rejected.parquet", Sample),
        replies,
        read_types(own),
    )


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines file; a torn last line is passed over.

    Raises:
        PhikitError: another line is not valid JSON.
    """
    if not path.exists():
        return
    with explain_os_errors(path, "reading"), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except json.JSONDecodeError as e:
                raise PhikitError(f"{path}:{number}: not valid JSON: {e.msg}") from e


def sheet(folder: Path, shown: int = 3, seed: int = 0) -> Sheet:
    """All that is to be said of a corpus.

    Args:
        shown: samples to read, accepted and rejected each.
        seed: of their choice.
    """
    corpus = read(folder)
    statuses = Counter(row["status"] for row in corpus.rows)
    mine = _own_replies(corpus)
    paid = sum(r["prompt_tokens"] + r["completion_tokens"] for r in mine)
    kept = sum(map(corpus.tokens, corpus.accepted))
    asked = len(corpus.rows)
    figures: list[tuple[str, str | int | float]] = [
        ("asked", asked),
        ("accepted", len(corpus.accepted)),
        ("yield", len(corpus.accepted) / asked if asked else 0.0),
        ("calls", len(mine)),
        ("tokens paid", paid),
        ("tokens accepted", round(kept)),
        ("paid per accepted", f"{paid / kept:.1f}" if kept else "–"),
    ]
    if money := _money(corpus, mine):
        per = f"{1e6 * money / kept:.2f}" if kept else "–"
        figures += [("money", f"{money:.2f}"), ("per M accepted tokens", per)]
    teacher = corpus.record.get("summary", {}).get("teacher", "")
    lost = statuses["failed"] + statuses["unsent"]
    lead = f"Written by {teacher or 'a teacher'}. Every sample that was asked for is accounted for"
    lead += f"; {lost} got no answer and can be asked again." if lost else "."
    return Sheet(
        f"Synthetic corpus {folder.resolve().name}",
        lead,
        figures,
        [
            _types(corpus),
            _reasons(corpus),
            *_coverage(corpus),
            _variety(corpus),
            _samples(corpus, shown, seed),
        ],
    )


def _own_replies(corpus: Corpus) -> list[dict[str, Any]]:
    """Those that this corpus used: a store may serve several."""
    ids = {reply for row in corpus.rows for reply in row["replies"]}
    return [corpus.replies[i] for i in sorted(ids) if i in corpus.replies]


def _money(corpus: Corpus, replies: list[dict[str, Any]]) -> float:
    prompt, completion = corpus.record.get("summary", {}).get("prices", (0, 0))
    used = (sum(r[f"{k}_tokens"] for r in replies) for k in ("prompt", "completion"))
    return sum(n * price for n, price in zip(used, (prompt, completion), strict=True)) / 1e6


def _types(corpus: Corpus) -> Section:
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in corpus.rows:
        rows[row["kind"]].append(row)
    kept: dict[str, float] = defaultdict(float)
    for sample in corpus.accepted:
        kept[sample.kind] += corpus.tokens(sample)
    wanted = corpus.record.get("summary", {}).get("wanted", {})
    table: list[tuple[str | int | float, ...]] = []
    for kind, mine in sorted(rows.items()):
        accepted = sum(r["status"] == "accepted" for r in mine)
        ids = {i for r in mine for i in r["replies"] if i in corpus.replies}
        paid = sum(
            corpus.replies[i]["prompt_tokens"] + corpus.replies[i]["completion_tokens"] for i in ids
        )
        worst = Counter(r["reason"] for r in mine if r["status"] not in _GOOD).most_common(1)
        table.append(
            (kind, wanted.get(kind, ""), len(mine), accepted, accepted / len(mine),
             f"{paid / kept[kind]:.1f}" if kept[kind] else "–", worst[0][0] if worst else "")
        )  # fmt: skip
    head = ("type", "wanted", "asked", "accepted", "yield", "paid per token", "most often lost to")
    return Section("Yield by type", "Tokens paid for (prompts included) per accepted token.", head,
                   table)  # fmt: skip


def _reasons(corpus: Corpus) -> Section:
    lost = [r for r in corpus.rows if r["status"] != "accepted"]
    counts = Counter((r["status"], r["reason"]) for r in lost)
    example = {(r["status"], r["reason"]): r["detail"] for r in reversed(lost)}
    table = [
        (status, reason, n, n / max(1, len(corpus.rows)), example[status, reason][:160])
        for (status, reason), n in counts.most_common()
    ]
    head = ("what became of it", "reason", "samples", "share", "for example")
    note = "" if table else "Every sample was accepted."
    return Section("What was lost, and why", note, head, table)


def _coverage(corpus: Corpus) -> list[Section]:
    domains: dict[str, list[Sample]] = defaultdict(list)
    for sample in corpus.accepted:
        kind = corpus.types.get(sample.kind)
        domains[kind.domain if kind else "(unknown type)"].append(sample)
    total = sum(map(corpus.tokens, corpus.accepted)) or 1.0
    asked = {corpus.types[r["kind"]].domain for r in corpus.rows if r["kind"] in corpus.types}
    skills = [
        (
            domain,
            len({s.kind for s in domains[domain]}),
            len(domains[domain]),
            round(sum(map(corpus.tokens, domains[domain]))),
            sum(map(corpus.tokens, domains[domain])) / total,
        )
        for domain in sorted(asked | set(domains))
    ]
    seeds = {r["seed"] for r in corpus.rows if r["seed"]}
    used = {p for s in corpus.accepted for p in s.parents} & seeds
    topics = Counter(str(s.meta["topic"]) for s in corpus.accepted if s.meta.get("topic"))
    note = f"{len(used)} of {len(seeds)} seed documents that were tried are in accepted samples."
    found = [
        Section("Skills", "", ("skill", "types", "samples", "tokens", "share"), skills),
        _drawn(corpus),
    ]
    if seeds:
        rows = [(name, n, n / sum(topics.values())) for name, n in topics.most_common(15)]
        found.append(Section("Topics", note, ("most used documents", "samples", "share"), rows))
    return found


def _drawn(corpus: Corpus) -> Section:
    """Which of the entries that types draw from are in accepted samples."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for sample in corpus.accepted:
        for name, value in sample.meta.get("drawn", {}).items():
            seen[sample.kind, name].add(value)
    rows = []
    for kind in sorted({r["kind"] for r in corpus.rows} & corpus.types.keys()):
        for name, entries in corpus.types[kind].vary.items():
            missing = [e for e in entries if e not in seen[kind, name]]
            have = len(entries) - len(missing)
            rows.append((f"{kind}.{name}", have, len(entries), "; ".join(missing)))
    covered, whole = sum(r[1] for r in rows), sum(r[2] for r in rows)
    note = f"{covered} of {whole} entries of the types' lists are in accepted samples."
    return Section("Drawn entries", note, ("list", "covered", "of", "missing"), rows)


def _variety(corpus: Corpus) -> Section:
    """How much the accepted samples say that is not said by the others."""
    texts = [s.text for s in corpus.accepted]
    rows = [
        ("accepted", *_measures(texts)),
        ("rejected", *_measures([s.text for s in corpus.rejected])),
    ]
    head = ("samples", "count", "distinct 1-grams", "distinct 3-grams", "compression")
    note = "Distinct word n-grams over all; bytes over compressed bytes (prose has about 2.5 to 3)."
    return Section("Variety", note, head, [r for r in rows if r[1]])


def _measures(texts: list[str]) -> tuple[int, float, float, str]:
    return (
        len(texts),
        diversity.distinct(texts, 1),
        diversity.distinct(texts, 3),
        f"{diversity.compression(texts):.2f}",
    )


def _samples(corpus: Corpus, shown: int, seed: int) -> Section:
    rng = Random(seed)
    blocks = []
    for good, samples in ((True, corpus.accepted), (False, corpus.rejected)):
        for sample in rng.sample(samples, min(shown, len(samples))):
            blocks.append(block(sample, good))
    return Section("Samples to read", f"Drawn with seed {seed}.", blocks=blocks)


def block(sample: Sample, good: bool | None) -> Block:
    """A sample as it is read: its turns, and its verdicts."""
    turns = [f"[{m['role']}] {m['content']}" for m in sample.messages] or [sample.text]
    verdicts = ", ".join(
        f"{'✓' if v.passed else '✗'} {v.verifier}: {v.reason}"[:120] for v in sample.verdicts
    )
    return Block(f"{sample.kind} {sample.id}", "\n".join(turns), verdicts, good)
