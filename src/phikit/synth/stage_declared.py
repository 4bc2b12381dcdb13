"""The stage `synth.declared`: a corpus by a language model, type by type, out of seed documents.

replies.jsonl     every paid answer, by the hash of its request (may be kept elsewhere: `store`)
requests.jsonl    what was asked, by the same hash
samples.parquet   what was accepted
rejected.parquet  what was not, with its verdicts, where there was a whole sample
outcomes.jsonl    every sample that was asked for, once: what became of it, and why
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import Field

from phikit.files import LineFile
from phikit.records import Document, Sample, iter_records, read_records, write_records
from phikit.stage import Config, Context, Estimate, Stage, given
from phikit.synth import corpus, declared_types
from phikit.synth.collect import shares
from phikit.synth.declared_types import DeclaredType
from phikit.synth.remote_teacher import Endpoint
from phikit.synth.replies import ReplyStore
from phikit.synth.seeds import SeedConfig, Seeds, documents_at, of_documents, of_problems
from phikit.synth.teachers import teacher_of
from phikit.verify.own import VerifierName, files


class DeclaredConfig(Config):
    """What is wanted of which teacher.

    Attributes:
        count: samples to be accepted, of all types together.
        types: the share of each dataset type; those of their files when empty, for every type
            whose seeds are there.
        folder: of dataset types of one's own.
        verifiers: of one's own that these types name, as FILE.py:NAME each.
        attempts: samples asked for, at most, per sample wanted.
        validators: keep only what they pass; off only to measure what they are worth.
        most_alike: of the word 8-grams that the teacher wrote, the share that earlier samples of
            the type may hold.
        most_gain: how much better what it wrote may compress beside the last samples of the type
            than alone; both measures are of a sample without its seed, and 1 turns each off.
        longest_reply: tokens of a reply, at most; 0: as the types' steps say.
        store: a file where replies are kept; for runs that share what they paid for.
        local: a model on this machine in place of an endpoint: a directory, or a name in the
            cache.
        batch: answers that a model in this process generates at once.
        seed_tag: names the random streams.
    """

    count: int = Field(default=100, ge=1)
    types: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    folder: str = ""
    verifiers: tuple[VerifierName, ...] = ()
    attempts: int = Field(default=4, ge=1)
    validators: bool = True
    most_alike: float = Field(default=0.6, ge=0, le=1)
    most_gain: float = Field(default=0.8, ge=0, le=1)
    longest_reply: int = Field(default=0, ge=0)
    store: str = ""
    local: str = ""
    batch: int = Field(default=64, ge=1)
    seeds: SeedConfig = Field(default_factory=SeedConfig)
    teacher: Endpoint = Field(default_factory=Endpoint)
    seed_tag: str = "train"


def run_declared(
    ctx: Context, config: DeclaredConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes the corpus and what became of every sample that was asked for.

    Raises:
        PhikitError: a type is unknown, a seed is lacking, or there is no teacher.
    """
    known = declared_types.read_types(Path(config.folder) if config.folder else None)
    for name in config.types:
        declared_types.find_type(name, known)
    stream = f"{ctx.seed}/{config.seed_tag}"
    chosen = {name: known[name] for name in config.types} or known
    kinds: set[str] = {t.seed for t in chosen.values()}
    found = _seeds(config, inputs, kinds - {"none"})
    if not config.types:
        chosen = {n: t for n, t in known.items() if t.seed == "none" or found.by_kind[t.seed]}
    wanted = shares(config.count, config.types or {n: t.share for n, t in chosen.items()})
    store = ReplyStore(Path(config.store) if config.store else ctx.dir / "replies.jsonl")
    made = asyncio.run(_write(ctx, config, inputs, chosen, wanted, found, store, stream))
    accepted = made.accepted
    Random(f"{stream}/order").shuffle(accepted)
    write_records(ctx.dir / "samples.parquet", accepted, Sample)
    write_records(ctx.dir / "rejected.parquet", made.rejected, Sample)
    _write_lines(ctx.dir / "outcomes.jsonl", (asdict(row) for row in made.rows))
    asked = ({"id": key, **asdict(r)} for key, r in sorted(made.requests.items()))
    _write_lines(ctx.dir / "requests.jsonl", asked)
    tally = made.tally()
    total = {s: sum(c.get(s, 0) for c in tally.values()) for s in _STATUSES}
    ctx.cost.tokens_generated += store.completion_tokens
    return {
        "accepted": len(accepted),
        "teacher": config.local or str(inputs.get("model", "")) or config.teacher.model,
        **{status: n for status, n in total.items() if n and status != "accepted"},
        "types": tally,
        "wanted": wanted,
        "seeds": {kind: len(s) for kind, s in sorted(found.by_kind.items())},
        "prompt_tokens": store.prompt_tokens,
        "completion_tokens": store.completion_tokens,
        "prices": [config.teacher.prompt_price, config.teacher.completion_price],
    }


_STATUSES = (
    "asked", "accepted", "rejected", "duplicate", "collision", "alike", "surplus", "failed",
    "unsent",
)  # fmt: skip


async def _write(
    ctx: Context,
    config: DeclaredConfig,
    inputs: Mapping[str, Path],
    chosen: Mapping[str, DeclaredType],
    wanted: Mapping[str, int],
    found: Seeds,
    store: ReplyStore,
    stream: str,
) -> corpus.Corpus:
    def tell(accepted: int, counts: Mapping[str, int]) -> None:
        ctx.progress.update(accepted, config.count, asked=sum(counts.values()))

    rules = corpus.Rules(
        stream,
        config.attempts,
        config.validators,
        config.most_alike,
        config.most_gain,
        config.longest_reply,
    )
    items = _items(inputs.get("items"))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        teacher = await stack.enter_async_context(teacher_of(config, inputs, store, ctx.seed))
        return await corpus.write(chosen, wanted, found, teacher, rules, items, tell)


def _seeds(config: DeclaredConfig, inputs: Mapping[str, Path], kinds: set[str]) -> Seeds:
    def documents() -> Iterable[Document]:
        for folder in given(inputs, "documents"):
            yield from documents_at(folder)

    found = of_documents(documents(), config.seeds, kinds)
    by_kind = dict(found.by_kind)
    if "problem" in kinds and "problems" in inputs:
        by_kind["problem"] = of_problems(
            iter_records(inputs["problems"] / "samples.parquet", Sample)
        )
    return Seeds(by_kind)


def _items(folder: Path | None) -> list[Sample]:
    return [] if folder is None else read_records(folder / "items.parquet", Sample)


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with LineFile(path) as lines:
        for row in rows:
            lines.add(row)


@functools.cache
def _calls(types: frozenset[str]) -> float:
    """Calls of one sample, on average over the types (all shipped ones when none is named)."""
    known = declared_types.read_types()
    steps = [len(t.steps) for n, t in known.items() if n in types or not types]
    return sum(steps) / max(1, len(steps))


def _estimate(config: DeclaredConfig) -> Estimate:
    calls = config.count * 2 * _calls(frozenset(config.types))
    return Estimate(
        f"{config.count:,} samples, about {calls:,.0f} calls",
        seconds=0 if config.local else calls * 10 / config.teacher.in_flight,
        tokens=300 * config.count,
        generated=200 * calls if config.local else 0,
    )


DECLARED: Stage[DeclaredConfig] = Stage(
    verb="synth.declared",
    config=DeclaredConfig,
    run=run_declared,
    inputs=("documents*", "items?", "problems?", "model?"),
    resumable=True,
    estimate=_estimate,
    reads=lambda c: [*filter(None, (c.folder, c.local)), *files(c.verifiers)],
    help="write training samples with a language model, by declared dataset types",
)
