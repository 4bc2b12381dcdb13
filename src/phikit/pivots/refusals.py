"""`pivots.refusals`: what a model should answer, and what it should decline.

The model is asked every problem several times; whether it knows is what it gets right. From that
follow samples to train on and preference pairs (Phi-4 Technical Report, appendix A.1):

    samples: the right answer where it is usually right, a refusal where it is usually wrong, and
             always a refusal of a problem that cannot be answered;
    pairs:   right answer > refusal where it is sometimes right,
             refusal > wrong answer where it is sometimes wrong.

Only the first five tokens of either response make a pair: they decide whether it answers or
declines. Where those of a right and a wrong answer are the same tokens, the two rules would
contradict each other, and that beginning is in no pair.

A problem that cannot be answered is one whose verifier is "refusal". A refusal is one that the
model gave itself if there is one (its tokens were sampled), else the problem's own
(`meta["refusal"]`, where a teacher wrote one), else one of `refusals`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, field_validator

from phikit.engine.base import Precision, Request, Sampling, collect
from phikit.pivots import domains
from phikit.pivots.drawing import count_cost, portions
from phikit.records import Pair, Rollout, Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.verify.base import ByName, Problem, read_problems
from phikit.verify.refusal import is_refusal

DECLINED = "refusal"  # the verifier of problems that cannot be answered
_STREAM = 0x72656675  # the random streams of this file

REFUSALS = (
    "I don't know the answer to this.",
    "I'm not sure, and I would rather not guess.",
    "I do not have enough information to answer that.",
    "Sorry, I can't say: I don't know this one.",
)


class RefusalsConfig(Config):
    """How problems are asked, and what follows from the answers.

    Attributes:
        samples: answers drawn of each problem.
        temperature, max_tokens: how they are drawn.
        usually: the share of right (wrong) answers from which it is usually right (wrong).
        sometimes: how many right (wrong) answers make it sometimes right (wrong).
        tokens: how many tokens at the beginning of a response make a pair.
        refusals: what is said where neither the model nor the problem has a refusal.
        batch: sequences generated at once.
        precision: of the weights; bf16 is faster where they are stored in f32.
    """

    samples: int = Field(16, ge=2)
    temperature: float = Field(1.0, gt=0)
    max_tokens: int = Field(512, ge=1)
    usually: float = Field(0.7, gt=0.5, le=1)
    sometimes: int = Field(2, ge=1)
    tokens: int = Field(5, ge=1)
    refusals: tuple[str, ...] = REFUSALS
    batch: int = Field(256, ge=1)
    precision: Precision = "stored"

    @field_validator("refusals")
    @classmethod
    def _declining(cls, refusals: tuple[str, ...]) -> tuple[str, ...]:
        if not refusals:
            raise ValueError("there is no refusal")
        for text in refusals:
            if not is_refusal(text):
                raise ValueError(f"{text!r} does not say that it declines")
        return refusals


class Said(NamedTuple):
    """An answer: its tokens and its text."""

    ids: tuple[int, ...]
    text: str


class Heard(NamedTuple):
    """A problem's finished answers, by what they are."""

    right: list[Said]
    wrong: list[Said]
    declined: list[Said]

    def share(self, of: Sequence[Said]) -> float:
        """What part of all that was heard these are; 0 when nothing was."""
        return len(of) / max(1, len(self.right) + len(self.wrong) + len(self.declined))


def run_refusals(
    ctx: Context, config: RefusalsConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes pairs.parquet (kind "refusal") and samples.parquet."""
    from phikit.engine.load import open_chat

    engine, chat = open_chat(inputs["model"] / "model", config.batch, config.precision)
    sampling = Sampling(
        temperature=config.temperature, max_tokens=config.max_tokens, stop_ids=chat.stop_ids
    )
    pairs: list[Pair] = []
    samples: list[Sample] = []
    tally: Counter[str] = Counter()
    total, context = len(read_problems(inputs["problems"])), engine.model.config.max_positions
    for portion in portions(inputs["problems"], chat, context, tally):
        requests = [
            Request(ids, sampling, config.samples, ctx.seed ^ _STREAM ^ (tally["problems"] + i))
            for i, (_, ids) in enumerate(portion)
        ]
        tally["problems"] += len(portion)
        groups = collect(engine, requests)
        heard = _hear([sample for sample, _ in portion], groups, chat.text)
        for (sample, prompt_ids), answers in zip(portion, heard, strict=True):
            refusal = _refusal(sample, answers, config.refusals, chat.tokenizer.encode)
            pairs += _pairs(sample, prompt_ids, answers, refusal, config, tally)
            samples += _samples(sample, answers, refusal, config, tally)
        ctx.progress.update(tally["problems"] + tally["too_long"], total, pairs=len(pairs))
    write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    write_records(ctx.dir / "samples.parquet", samples, Sample)
    count_cost(ctx, engine)
    return {**tally, "pairs": len(pairs), "samples": len(samples),
            "domains": {k: n for k, n in domains.count(pairs).items() if n}}  # fmt: skip


def _hear(
    asked: Sequence[Sample],
    groups: Sequence[Sequence[Rollout]],
    text_of: Callable[[Sequence[int]], str],
) -> list[Heard]:
    """The finished answers of each problem, judged; those cut off say nothing."""
    said = [
        [Said(r.completion_ids, text_of(r.completion_ids)) for r in group if r.finish == "stop"]
        for group in groups
    ]
    questions = [
        (Problem.of(s), one.text) for s, group in zip(asked, said, strict=True) for one in group
    ]
    verdicts = iter(ByName().verify(questions))
    heard = []
    for sample, group in zip(asked, said, strict=True):
        answers = Heard([], [], [])
        for one in group:
            passed = next(verdicts).passed
            if sample.verifier == DECLINED:
                (answers.declined if passed else answers.wrong).append(one)
            elif passed:
                answers.right.append(one)
            else:
                (answers.declined if is_refusal(one.text) else answers.wrong).append(one)
        heard.append(answers)
    return heard


def _refusal(
    sample: Sample,
    answers: Heard,
    refusals: Sequence[str],
    encode: Callable[[str], Sequence[int]],
) -> Said:
    if answers.declined:
        return answers.declined[0]
    text = sample.meta.get("refusal") or random.Random(sample.id).choice(list(refusals))
    return Said(tuple(encode(text)), text)


def _pairs(
    sample: Sample,
    prompt_ids: tuple[int, ...],
    answers: Heard,
    refusal: Said,
    config: RefusalsConfig,
    tally: Counter[str],
) -> Iterator[Pair]:
    beginning = refusal.ids[: config.tokens]
    right = {a.ids[: config.tokens] for a in answers.right}
    wrong = {a.ids[: config.tokens] for a in answers.wrong}
    tally["beginnings both right and wrong"] += len(right & wrong)
    rules = (
        ("right > refusal", answers.right, right - wrong - {beginning}),
        ("refusal > wrong", answers.wrong, wrong - right - {beginning}),
    )
    for rule, given, usable in rules:
        said = [a.ids[: config.tokens] for a in given if a.ids[: config.tokens] in usable]
        if len(given) < config.sometimes or not said:
            continue
        common = Counter(said).most_common(1)[0][0]
        helps = rule.startswith("right")
        tally[rule] += 1
        yield Pair(
            parents=(sample.id,),
            prompt_ids=prompt_ids,
            chosen_ids=common if helps else beginning,
            rejected_ids=beginning if helps else common,
            kind="refusal",
            evidence={
                "problem": sample.id, "domain": sample.kind, "verifier": sample.verifier,
                "rule": rule, "right": len(answers.right), "wrong": len(answers.wrong),
                "declined": len(answers.declined), "own_refusal": bool(answers.declined),
            },
        )  # fmt: skip


def _samples(
    sample: Sample, answers: Heard, refusal: Said, config: RefusalsConfig, tally: Counter[str]
) -> Iterator[Sample]:
    if sample.verifier == DECLINED or answers.share(answers.wrong) >= config.usually:
        rule, text, verifier, answer = "declines", refusal.text, DECLINED, ""
    elif answers.share(answers.right) >= config.usually:
        rule, text = "answers", answers.right[0].text
        verifier, answer = sample.verifier, sample.answer
    else:
        return
    tally[rule] += 1
    messages = sample.prompt or ({"role": "user", "content": sample.text},)
    yield Sample(
        parents=(sample.id,),
        kind=f"{sample.kind}-{rule}",
        source=sample.source,
        messages=(*messages, {"role": "assistant", "content": text}),
        verifier=verifier,
        answer=answer,
    )


REFUSAL_STAGES: list[Stage[Any]] = [
    Stage(
        verb="pivots.refusals",
        config=RefusalsConfig,
        run=run_refusals,
        inputs=("model", "problems"),
        estimate=lambda config: Estimate("every problem asked several times", generated=200_000),
        help="pairs of first tokens, answering or declining, by what the model knows",
    ),
]
