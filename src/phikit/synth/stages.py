"""The stages of synthesis: held-out problems to evaluate on, and samples to train on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from phikit.errors import PhikitError, did_you_mean
from phikit.records import Document, Sample, read_records, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.synth import recall
from phikit.synth.asking import ASKING_STAGES
from phikit.synth.collect import Collector, shares
from phikit.synth.exercise import Style
from phikit.synth.gym import GYM_STAGES
from phikit.synth.judge_pairs import JUDGE_STAGES
from phikit.synth.rehearsal import REHEARSAL_STAGES
from phikit.synth.slips import SlippingTeacher
from phikit.synth.stage_declared import DECLARED
from phikit.synth.stage_quality import QUALITY_STAGES
from phikit.synth.teacher import Candidate, Order, ProceduralTeacher, Teacher, pretraining_prompt
from phikit.synth.trajectories import TRAJECTORIES
from phikit.synth.types.catalogue import TYPES, find
from phikit.synth.workflows import reversals, rewrites
from phikit.verify.base import ByName


def _known_type(name: str) -> str:
    if name not in TYPES:
        raise ValueError(f"no dataset type is named {name!r}: {did_you_mean(name, TYPES)}")
    return name


TypeName = Annotated[str, AfterValidator(_known_type)]


class Problems(Config):
    """Which problems a stage asks its teacher for.

    Attributes:
        count: how many samples of all types together.
        types: the weight of each dataset type; every type alike when empty.
        difficulty: 1 (easiest) to 5.
        difficulties: other difficulties for single types.
        refusal_share: the share of each type's samples that must be declined, for the types that
            have unanswerable variants.
        seed_tag: names the random streams; stages with different tags get different problems.
    """

    count: int = Field(default=1000, ge=0)
    types: dict[TypeName, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    difficulty: int = Field(default=2, ge=1, le=5)
    difficulties: dict[TypeName, Annotated[int, Field(ge=1, le=5)]] = Field(default_factory=dict)
    refusal_share: float = Field(default=0.05, ge=0, le=1)
    seed_tag: str = "train"

    def orders(self, stream: str, style: Style = "short") -> list[tuple[int, Order]]:
        """(how many, the order whose index is to be counted up) for each type and variant."""
        weights = self.types or dict.fromkeys(TYPES, 1.0)
        plan = []
        for name, count in shares(self.count, weights).items():
            difficulty = self.difficulties.get(name, self.difficulty)
            declined = round(count * self.refusal_share) if find(name).unanswerable else 0
            for unanswerable, part in ((False, count - declined), (True, declined)):
                if part:
                    order = Order(name, stream, 0, difficulty, style, unanswerable)
                    plan.append((part, order))
        return plan


class ItemsConfig(Problems):
    """Held-out evaluation problems, and recall items at several lengths.

    Attributes:
        recall_count: how many recall items per length.
        recall_lengths: of the prompts, in tokens.
        recall_keys: how many people have a code in each.
        characters_per_token: turns token lengths into text, as no tokenizer exists yet.
        validators: pass each problem's own solution through its verifier.
    """

    seed_tag: str = "eval"
    recall_count: int = Field(default=50, ge=0)
    recall_lengths: tuple[int, ...] = (128, 256, 512, 900)
    recall_keys: int = Field(default=4, ge=1, le=60)
    characters_per_token: float = Field(default=2.5, gt=0)
    validators: bool = True


class ProceduralConfig(Problems):
    """Training samples from the procedural teacher.

    Attributes:
        style: "short" solutions, or "thought": a longer worked thought before the solution.
        recall_count: short recall exercises, so that the skill exists before the long ones.
        recall_length: of their prompts, in tokens.
        long_documents: how many long recall documents for each of `long_lengths`.
        long_lengths: in tokens.
        recall_keys: how many people have a code; long documents have three times as many.
        characters_per_token: turns token lengths into text, as no tokenizer exists yet.
        rewrites: at most how many exercises to make of the documents' prose.
        reversals: at most how many of the documents' functions to turn into instructions.
        validators: keep only what the verifiers pass; off only to measure what they are worth.
        slips: the share of the teacher's answers that are wrong on purpose, for the same.
    """

    style: Style = "short"
    recall_count: int = Field(default=0, ge=0)
    recall_length: int = Field(default=100, ge=40)
    long_documents: int = Field(default=0, ge=0)
    long_lengths: tuple[int, ...] = (500, 900)
    recall_keys: int = Field(default=4, ge=1, le=20)
    characters_per_token: float = Field(default=2.5, gt=0)
    rewrites: int = Field(default=0, ge=0)
    reversals: int = Field(default=0, ge=0)
    validators: bool = True
    slips: float = Field(default=0, ge=0, lt=1)


def _procedural(
    ctx: Context,
    collector: Collector,
    plan: list[tuple[int, Order]],
    extra: int,
    slips: float = 0.0,
) -> None:
    """Fills the collector with every order of the plan; `extra` samples are still to come."""
    teacher: Teacher = ProceduralTeacher()
    if slips:
        teacher = SlippingTeacher(teacher, slips)
    total = sum(part for part, _ in plan) + extra

    def report() -> None:
        ctx.progress.update(len(collector.accepted), total, rejected=len(collector.rejected))

    for part, order in plan:
        name = f"{order.kind} (unanswerable)" if order.unanswerable else order.kind
        collector.fill(name, part, partial(_write, teacher, order), report=report)


def _write(teacher: Teacher, order: Order, indices: range) -> list[Candidate | None]:
    return teacher.write([replace(order, index=i) for i in indices])


def _each(write: Callable[[int], Candidate]) -> Callable[[range], Iterable[Candidate]]:
    return lambda indices: map(write, indices)


def _measure(characters_per_token: float) -> recall.Measure:
    return lambda text: len(text) / characters_per_token


def run_items(ctx: Context, config: ItemsConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Writes items.parquet and recall.parquet: questions with their gold answers."""
    stream = f"{ctx.seed}/{config.seed_tag}"
    verifier = ByName() if config.validators else None
    collector = Collector(verifier=verifier)
    measure = _measure(config.characters_per_token)
    problems = config.orders(stream)
    _procedural(ctx, collector, problems, config.recall_count * len(config.recall_lengths))
    items = [_without_solution(sample) for sample in collector.accepted]
    collector.accepted.clear()
    for length in config.recall_lengths:
        one = partial(
            recall.exercise, stream, length=length, keys=config.recall_keys, measure=measure
        )
        collector.fill(f"recall {length}", config.recall_count, _each(one))
    recalls = [_without_solution(sample) for sample in collector.accepted]
    write_records(ctx.dir / "items.parquet", items, Sample)
    write_records(ctx.dir / "recall.parquet", recalls, Sample)
    write_records(ctx.dir / "rejected.parquet", collector.rejected, Sample)
    made = {"accepted": len(items) + len(recalls), "items": len(items), "recall": len(recalls)}
    return {**collector.summary(), **made}


def _without_solution(sample: Sample) -> Sample:
    """The question alone; its text is the prompt of a base model."""
    return replace(
        sample, id="", text=pretraining_prompt(sample), messages=sample.prompt, verdicts=()
    )


def run_procedural(
    ctx: Context, config: ProceduralConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes samples.parquet and rejected.parquet."""
    stream = f"{ctx.seed}/{config.seed_tag}"
    items = _items(inputs.get("items"))
    collector = Collector(items, ByName() if config.validators else None)
    measure = _measure(config.characters_per_token)
    extra = config.recall_count + config.long_documents * len(config.long_lengths)
    _procedural(ctx, collector, config.orders(stream, config.style), extra, config.slips)
    keys = config.recall_keys
    short = partial(
        recall.exercise, stream, length=config.recall_length, keys=keys, measure=measure
    )
    collector.fill("recall", config.recall_count, _each(short))
    for length in config.long_lengths:
        long = partial(recall.long_document, stream, length=length, keys=3 * keys, measure=measure)
        collector.fill("long recall", config.long_documents, _each(long))
    _from_documents(config, collector, inputs.get("documents"), stream)
    Random(f"{stream}/order").shuffle(collector.accepted)
    write_records(ctx.dir / "samples.parquet", collector.accepted, Sample)
    write_records(ctx.dir / "rejected.parquet", collector.rejected, Sample)
    return collector.summary()


def _from_documents(
    config: ProceduralConfig, collector: Collector, folder: Path | None, stream: str
) -> None:
    """Rewrites and reversals.

    Raises:
        PhikitError: they are asked for, but the stage has no documents.
    """
    if not config.rewrites and not config.reversals:
        return
    if folder is None:
        raise PhikitError(
            "rewrites and reversals are made of documents, and this stage has none",
            "give it the input `documents`, or set rewrites and reversals to 0",
        )
    documents = read_records(folder / "documents.parquet", Document)
    if config.rewrites:
        Random(f"{stream}/documents").shuffle(documents)
        collector.add(rewrites(documents, stream), "rewrites", config.rewrites)
    if config.reversals:
        collector.add(reversals(documents), "reversals", config.reversals)


def _items(folder: Path | None) -> list[Sample]:
    """Every question that is evaluated on, recall included."""
    if folder is None:
        return []
    names = ("items.parquet", "recall.parquet")
    return [item for name in names for item in read_records(folder / name, Sample)]


_TOKENS = {"short": 90, "thought": 160}  # of a sample, roughly


def _procedural_estimate(config: ProceduralConfig) -> Estimate:
    count = config.count + config.recall_count + config.long_documents * len(config.long_lengths)
    seconds = count / 5000 + (config.rewrites + config.reversals) / 2000
    return Estimate(f"{count:,} samples", seconds, tokens=_TOKENS[config.style] * config.count)


STAGES: list[Stage[Any]] = [
    Stage(
        verb="synth.items",
        config=ItemsConfig,
        run=run_items,
        estimate=lambda c: Estimate(f"{c.count:,} problems", c.count / 5000),
        help="write held-out problems to evaluate on",
    ),
    Stage(
        verb="synth.procedural",
        config=ProceduralConfig,
        run=run_procedural,
        inputs=("items?", "documents?"),
        estimate=_procedural_estimate,
        help="write training samples with the procedural teacher",
    ),
    DECLARED,
    *QUALITY_STAGES,
    *ASKING_STAGES,
    TRAJECTORIES,
    *JUDGE_STAGES,
    *REHEARSAL_STAGES,
    *GYM_STAGES,
]
