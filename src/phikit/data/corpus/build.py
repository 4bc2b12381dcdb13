"""A corpus from files to training shards, step by step; killed at any instant, it goes on.

    1-clean/NNNNN      each shard's documents that passed the filters, and arrays to compare them
    2-duplicates/      rank, band-NN-NN, joined
    3-usual/           which items' n-grams and which letters are usual in all shards together
    4-kept/NNNNN       each shard's documents that stay; what did not, and why
    5-tokens-TTT/NNNNN  their token ids, by the tokenizer with that hash
    6-training/MMM     a mixture, in the order of training: what `train` reads
    corpus.json        what came of it
    units.jsonl        which process did what

Every step is cut into units (`units`), so it can be spread over processes or a cluster.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phikit.data.corpus import duplicates
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.plan import ROOT, Shard, shards_of
from phikit.data.corpus.units import Unit, Workers
from phikit.data.readers import files
from phikit.errors import PhikitError
from phikit.files import canonical_json, explain_os_errors, read_json, write_json
from phikit.records import Document, iter_records, write_records

Say = Callable[[str, int, int], None]  # (step, units done, units in all)


@dataclass(frozen=True)
class Job:
    """What to build.

    Attributes:
        paths: files and folders; none for the reader's own root, as one shard.
        items: evaluation items (Parquet) that nothing may share text with; None leaves this out.
        tokenizer: a folder with tokenizer.json; None leaves tokens and the mixture out.
        tokens: of the mixture, repetitions included; 0 for every document once.
        weights: of the mixture, by source class.
        chars_per_source: how much of each source class is kept of each shard; 0 for all.
    """

    paths: tuple[Path, ...]
    config: CorpusConfig
    items: Path | None = None
    tokenizer: Path | None = None
    tokens: int = 0
    weights: tuple[tuple[str, float], ...] = ()
    seed: int = 0
    chars_per_source: int = 0


def build(job: Job, out: Path, workers: Workers, say: Say) -> dict[str, Any]:
    """Builds the corpus in a folder, or what is left to do of it; returns `corpus.json`.

    Raises:
        PhikitError: there is nothing to read, the folder holds another corpus, another process is
            at work in it, the disk is full, or a unit fails time and again.
    """
    with explain_os_errors(out, "writing"):
        out.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(out):
            plan = _plan(job, out)
            return _Build(job, out, workers, say, plan).run()
    finally:
        workers.close()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise PhikitError(f"{out}: another process is at work here", "wait for it") from e
        yield


def _plan(job: Job, out: Path) -> list[Shard]:
    """The shards; those of the first time, if there was one."""
    identity = {
        "paths": [str(p.resolve()) for p in job.paths],
        "settings": job.config.model_dump(mode="json"),
        "items": _digest(job.items) if job.items else "",
    }
    path = out / "plan.json"
    if path.exists():
        plan = read_json(path)
        for key, value in identity.items():
            if plan[key] != value:
                raise PhikitError(
                    f"{out}: holds a corpus of other {key}", "choose another folder, or delete it"
                )
        return list(plan["shards"])
    shards: list[Shard] = [[ROOT]]
    if job.paths:
        shards = shards_of(files(job.paths), job.config.shard_bytes)
    if not shards:
        raise PhikitError(f"{', '.join(map(str, job.paths))}: no file that can be read")
    write_json(path, {**identity, "shards": shards})
    return shards


def _digest(path: Path) -> str:
    with explain_os_errors(path, "reading"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class _Build:
    def __init__(
        self, job: Job, out: Path, workers: Workers, say: Say, shards: list[Shard]
    ) -> None:
        self.job, self.out, self.workers, self.say, self.shards = job, out, workers, say, shards
        self.settings = job.config.model_dump(mode="json")
        self.items = str(job.items.resolve()) if job.items else ""
        self.training = ""

    def run(self) -> dict[str, Any]:
        cleaned = self._do("read and filter", "clean:clean", "1-clean", [
            {"shard": shard, "settings": self.settings, "items": self.items,
             "chars_per_source": self.job.chars_per_source}
            for shard in self.shards
        ])  # fmt: skip
        joined = self._duplicates(cleaned)
        kept = self._do("judge", "judge:judge", "4-kept", self._judgements(cleaned, joined))
        if self.job.tokenizer is not None:
            self._tokens(kept)
        return self._report(cleaned, kept)

    def _do(
        self, step: str, function: str, folder: str, arguments: Sequence[dict[str, Any]],
        names: Sequence[str] = (),
    ) -> list[str]:  # fmt: skip
        """Does a step's units; returns their folders."""
        parent = self.out.resolve() / folder
        parent.mkdir(parents=True, exist_ok=True)
        units = [
            Unit(f"phikit.data.corpus.{function}", parent / (names[n] if names else f"{n:05}"), a)
            for n, a in enumerate(arguments)
        ]
        self.workers.run(units, lambda done, total: self.say(step, done, total))
        return [str(unit.folder) for unit in units]

    def _duplicates(self, cleaned: list[str]) -> str:
        given = {"shards": cleaned, "settings": self.settings}
        step, folder = "deduplicate", "2-duplicates"
        (ranked,) = self._do(step, "duplicates:rank", folder, [given], ["rank"])
        documents = sum(read_json(Path(s) / "counts.json")["kept"] for s in cleaned)
        parts = -(-documents // duplicates.PART_DOCUMENTS) or 1
        places = [(b, p) for b in range(self.job.config.dedup.bands) for p in range(parts)]
        bands = self._do(step, "duplicates:band", folder, [
            {**given, "ranked": ranked, "number": b, "part": p, "parts": parts} for b, p in places
        ], [f"band-{b:02}-{p:02}" for b, p in places])  # fmt: skip
        (joined,) = self._do(step, "duplicates:join", folder, [
            {"shards": cleaned, "ranked": ranked, "bands": bands}
        ], ["joined"])  # fmt: skip
        return joined

    def _judgements(self, cleaned: list[str], joined: str) -> list[dict[str, Any]]:
        """Gathers what all shards say together; returns each shard's arguments of `judge`."""
        begins = np.cumsum([0, *(read_json(Path(s) / "counts.json")["kept"] for s in cleaned)])
        arguments: list[dict[str, Any]] = [
            {"shard": shard, "begin": begin, "joined": joined, "settings": self.settings}
            for shard, begin in zip(cleaned, begins.tolist(), strict=False)
        ]
        if self.items:
            (found,) = self._do("decontaminate", "judge:shared", "3-usual", [
                {"shards": cleaned, "items": self.items, "settings": self.settings}
            ], ["items"])  # fmt: skip
            for each in arguments:
                each |= {"items": self.items, "found": found}
        if self.job.config.outliers:
            names = [f"letters-{n:05}" for n in range(len(cleaned))]
            counted = self._do("count letters", "judge:letters", "3-usual",
                               [{"shard": s} for s in cleaned], names)  # fmt: skip
            names = [f"surprise-{n:05}" for n in range(len(cleaned))]
            given = [{"shard": s, "counted": counted} for s in cleaned]
            surprised = self._do("count letters", "judge:surprise", "3-usual", given, names)
            (limited,) = self._do("count letters", "judge:limits", "3-usual", [
                {"surprises": surprised, "settings": self.settings}
            ], ["limits"])  # fmt: skip
            for each, folder in zip(arguments, surprised, strict=True):
                each |= {"surprised": folder, "limited": limited}
        return arguments

    def _tokens(self, kept: list[str]) -> None:
        assert self.job.tokenizer is not None
        tokenizer = str(self.job.tokenizer.resolve())
        digest = _digest(self.job.tokenizer / "tokenizer.json")
        made = self._do("tokenise", "tokens:tokenise", f"5-tokens-{digest[:8]}",
                        [{"shard": s, "tokenizer": tokenizer} for s in kept])  # fmt: skip
        drawn = {"tokens": self.job.tokens, "weights": dict(self.job.weights),
                 "seed": self.job.seed}  # fmt: skip
        name = hashlib.sha256(canonical_json([digest, drawn]).encode()).hexdigest()[:8]
        (self.training,) = self._do("mix", "tokens:mixture", "6-training", [
            {"shards": made, "tokenizer": tokenizer, **drawn}
        ], [name])  # fmt: skip

    def _report(self, cleaned: list[str], kept: list[str]) -> dict[str, Any]:
        first = [read_json(Path(s) / "counts.json") for s in cleaned]
        last = [read_json(Path(s) / "counts.json") for s in kept]
        report: dict[str, Any] = {
            "shards": len(self.shards),
            "read": _sum(c["read"] for c in first),
            "passed the filters": sum(c["kept"] for c in first),
            "documents": sum(c["documents"] for c in last),
            "kept": _sum(c["kept"] for c in last),
            "chars": _sum(c["chars"] for c in last),
            "rejected": _sum([*(c["rejected"] for c in first), *(c["rejected"] for c in last)]),
            "decontaminated against": self.items or "nothing: no items were given",
        }
        if self.job.tokenizer is not None:
            report["training"] = self.training
            report["mixture"] = read_json(Path(self.training) / "mixture.json")
        write_json(self.out / "corpus.json", report)
        return report


def _sum(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def documents(out: Path) -> Iterator[Document]:
    """All documents of a corpus that was built, in order."""
    for shard in sorted((out / "4-kept").iterdir()):
        if not shard.name.startswith("."):
            yield from iter_records(shard / "documents.parquet", Document)


def gather(out: Path, path: Path) -> int:
    """Writes all documents of a corpus to one file; returns how many."""
    return write_records(path, documents(out), Document)
