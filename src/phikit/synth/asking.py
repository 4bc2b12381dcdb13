"""The stages `synth.plurality` and `synth.difficulty`: the same question, answered several times.

Plurality (Phi-4 report, section 2.1): of several independent answers, questions are dropped whose
answers all agree (too easy) or all differ (too hard, or ambiguous); the answer of the plurality is
taken for the truth. Difficulty: a student's share of right answers, kept inside a band.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from phikit.errors import BadRecord, PhikitError
from phikit.records import Sample, Verdict, read_records, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.synth.remote_teacher import Endpoint
from phikit.synth.replies import Outcome, ReplyStore, Request
from phikit.synth.teachers import teacher_of
from phikit.verify.answer import final_answer
from phikit.verify.base import ByName, Problem

_CLOSING = "\n\nWork step by step. End with a line of the form: Answer: ..."


class AskingConfig(Config):
    """How questions are asked again.

    Attributes:
        answers: independent answers to each question.
        temperature, max_tokens: how they are drawn.
        closing: say how an answer has to end.
        count: questions to ask, the first of the file; 0: all.
        store: a file where replies are kept.
        local: a model on this machine in place of an endpoint.
        batch: answers that a model in this process generates at once.
    """

    answers: int = Field(default=8, ge=2)
    temperature: float = Field(default=0.8, gt=0)
    max_tokens: int = Field(default=512, ge=1)
    closing: bool = True
    count: int = Field(default=0, ge=0)
    store: str = ""
    local: str = ""
    batch: int = Field(default=64, ge=1)
    teacher: Endpoint = Field(default_factory=Endpoint)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answers; `replies` are where they are stored."""

    sample: Sample
    answers: tuple[str, ...]
    replies: tuple[str, ...]
    failed: int


async def _ask(
    ctx: Context,
    config: AskingConfig,
    inputs: Mapping[str, Path],
    samples: Sequence[Sample],
    store: ReplyStore,
) -> list[Asked]:
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        teacher = await stack.enter_async_context(teacher_of(config, inputs, store, ctx.seed))
        done = 0

        async def one(sample: Sample) -> Asked:
            nonlocal done
            outcomes = await asyncio.gather(
                *(teacher.ask(_request(config, sample, i)) for i in range(config.answers))
            )
            done += 1
            ctx.progress.update(done, len(samples))
            return _asked(sample, outcomes)

        return list(await asyncio.gather(*map(one, samples)))


def _request(config: AskingConfig, sample: Sample, number: int) -> Request:
    messages = [dict(m) for m in sample.prompt]
    if config.closing:
        messages[-1]["content"] += _CLOSING
    return Request(tuple(messages), None, config.temperature, config.max_tokens, number + 1)


def _asked(sample: Sample, outcomes: Sequence[Outcome]) -> Asked:
    good = [o for o in outcomes if o.status == "accepted"]
    return Asked(
        sample,
        tuple(str(o.value) for o in good),
        tuple(r for o in good for r in o.replies[-1:]),
        len(outcomes) - len(good),
    )


def _gather(ctx: Context, config: AskingConfig, inputs: Mapping[str, Path]) -> list[Asked]:
    path = inputs["samples"] / "samples.parquet"
    samples = [s for s in read_records(path, Sample) if s.prompt]
    if not samples:
        raise PhikitError(f"{path}: no sample asks anything")
    samples = samples[: config.count or None]
    store = ReplyStore(Path(config.store) if config.store else ctx.dir / "replies.jsonl")
    asked = asyncio.run(_ask(ctx, config, inputs, samples, store))
    ctx.cost.tokens_generated += store.completion_tokens
    return asked


def _write(
    ctx: Context, done: Sequence[tuple[Sample, Verdict]], asked: Sequence[Asked]
) -> dict[str, Any]:
    """Samples whose last verdict passed, and the others; counts by reason."""
    kept = [s for s, v in done if v.passed]
    dropped = [s for s, v in done if not v.passed]
    write_records(ctx.dir / "samples.parquet", kept, Sample)
    write_records(ctx.dir / "rejected.parquet", dropped, Sample)
    reasons: dict[str, int] = {}
    for _, v in done:
        reason = v.reason.partition(":")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "asked": len(done),
        "kept": len(kept),
        "reasons": dict(sorted(reasons.items())),
        "answers": sum(len(a.answers) for a in asked),
        "answers_failed": sum(a.failed for a in asked),
    }


# --- plurality -----------------------------------------------------------------------------------


class PluralityConfig(AskingConfig):
    """Which questions are kept.

    Attributes:
        most: a question is too easy when a larger share of its answers agrees.
        least: a question is too hard when the plurality has fewer answers than this.
    """

    most: float = Field(default=0.99, gt=0, le=1)
    least: int = Field(default=2, ge=1)


def groups(answers: Sequence[str], verifier: str) -> list[list[int]]:
    """Answers that are the same result, by their numbers; the largest group first.

    Two answers are the same when the verifier passes one against the other as the truth; without a
    verifier, when their texts are equal. Answers that state no result are in no group.
    """
    stated = [(i, a) for i, text in enumerate(answers) if (a := final_answer(text))]
    found: list[tuple[str, list[int]]] = []
    for i, answer in stated:
        same = [_same(first, answer, verifier) for first, _ in found]
        if True in same:
            found[same.index(True)][1].append(i)
        else:
            found.append((answer, [i]))
    return sorted((members for _, members in found), key=lambda m: (-len(m), m[0]))


def _same(truth: str, answer: str, verifier: str) -> bool:
    if " ".join(truth.lower().split()) == " ".join(answer.lower().split()):
        return True
    if verifier not in ("math", "number", "choice", "exact"):
        return False
    problem = Problem(prompt="", answer=truth, verifier=verifier)
    try:
        return ByName().verify([(problem, f"Answer: {answer}")])[0].passed
    except BadRecord:
        return False  # the first is no gold that the verifier can read


def judge_plurality(asked: Asked, config: PluralityConfig) -> tuple[Sample, Verdict]:
    """The question with the plurality's answer and one way to it, and the verdict on it."""
    sample, answers = asked.sample, asked.answers
    found = groups(answers, sample.verifier)
    sizes = [len(g) for g in found]
    shown = " + ".join(map(str, sizes)) + f" of {len(answers)}"
    if not sizes:
        reason, passed = "no answer states a result", False
    elif sizes[0] < config.least:
        reason, passed = f"all differ: {shown}", False
    elif sizes[0] / len(answers) > config.most:
        reason, passed = f"all agree: {shown}", False
    elif len(sizes) > 1 and sizes[1] == sizes[0]:
        reason, passed = f"a tie: {shown}", False
    else:
        reason, passed = f"a plurality: {shown}", True
    score = sizes[0] / len(answers) if sizes else 0.0
    verdict = Verdict(passed=passed, score=score, reason=reason, verifier="plurality")
    if not passed:
        return _with(sample, verdict), verdict
    chosen = min(found[0], key=lambda i: (len(answers[i]), i))
    truth = final_answer(answers[chosen]) or ""
    was = sample.answer
    made = replace(
        sample,
        id="",
        parents=(sample.id, asked.replies[chosen]),
        messages=(*sample.prompt, {"role": "assistant", "content": answers[chosen]}),
        text="\n\n".join([*(m["content"] for m in sample.prompt), answers[chosen]]),
        answer=truth,
        verifier=sample.verifier or "exact",
        meta={**sample.meta, "votes": sizes, **({"answer_was": was} if was != truth else {})},
    )
    return _with(made, verdict), verdict


def _with(sample: Sample, verdict: Verdict) -> Sample:
    return replace(sample, id="", verdicts=(*sample.verdicts, verdict))


def run_plurality(
    ctx: Context, config: PluralityConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes samples.parquet and rejected.parquet."""
    asked = _gather(ctx, config, inputs)
    done = [judge_plurality(a, config) for a in asked]
    known = [(s, a.sample) for (s, v), a in zip(done, asked, strict=True) if v.passed]
    known = [(new, old) for new, old in known if old.answer]
    same = sum(_same(old.answer, new.answer, old.verifier) for new, old in known)
    return {**_write(ctx, done, asked), "agree_with_given": same, "had_an_answer": len(known)}


# --- difficulty ----------------------------------------------------------------------------------


class DifficultyConfig(AskingConfig):
    """The band of difficulty.

    Attributes:
        low, high: the least and the most of a student's share of right answers.
    """

    low: float = Field(default=0.2, ge=0, le=1)
    high: float = Field(default=0.8, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> DifficultyConfig:
        if self.low > self.high:
            raise ValueError(f"low is {self.low} and high {self.high}: nothing is between them")
        return self


def run_difficulty(
    ctx: Context, config: DifficultyConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes samples.parquet and rejected.parquet; the student is the stage's teacher.

    Raises:
        PhikitError: a sample names no verifier.
    """
    asked = _gather(ctx, config, inputs)
    done = []
    for a in asked:
        if not a.sample.verifier:
            raise PhikitError(f"sample {a.sample.id} names no verifier: nothing can be judged")
        problem = Problem.of(a.sample)
        verdicts = ByName().verify([(problem, text) for text in a.answers])
        rate = sum(v.passed for v in verdicts) / len(verdicts) if verdicts else 0.0
        where = "too hard" if rate < config.low else "too easy" if rate > config.high else "inside"
        verdict = Verdict(
            passed=where == "inside" and bool(verdicts),
            score=rate,
            reason=f"{where}: {rate:.0%} of {len(verdicts)} answers right",
            verifier="difficulty",
        )
        sample = replace(a.sample, meta={**a.sample.meta, "pass_rate": round(rate, 4)})
        done.append((_with(replace(sample, parents=(a.sample.id,)), verdict), verdict))
    return _write(ctx, done, asked)


ASKING_STAGES: list[Stage[Any]] = [
    Stage(
        verb="synth.plurality",
        config=PluralityConfig,
        run=run_plurality,
        inputs=("samples", "model?"),
        resumable=True,
        estimate=lambda c: Estimate(f"{c.answers} answers to each question", 60),
        help="drop questions whose answers all agree or all differ; the plurality is the truth",
    ),
    Stage(
        verb="synth.difficulty",
        config=DifficultyConfig,
        run=run_difficulty,
        inputs=("samples", "model?"),
        resumable=True,
        estimate=lambda c: Estimate(f"{c.answers} answers to each question", 60),
        help="keep problems that a student solves in a stated share of its tries",
    ),
]
