"""Verified answers as training data: drawn once, learned from as answers or as preferences.

`train.rollouts` draws several answers to each problem and verifies them; `train.distill` trains on
the right ones, as phi-4-mini-reasoning's first two steps do; `train.dpo` on its pairs of a right
and a wrong answer is the third (report arXiv 2504.21233). Token ids go through as they were drawn.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.stage import Config, Context, Estimate, Stage, given
from phikit.train.stage_next_token import NextTokenSettings, _next_token, _size

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat
    from phikit.data.pack import Example
    from phikit.engine.base import Request
    from phikit.records import Pair, Rollout, Sample
    from phikit.verify.base import Verifier

Inputs = Mapping[str, Path]
Asked = tuple["Sample", tuple[int, ...]]  # a problem, and its prompt's token ids


class RolloutsSettings(Config):
    """How answers are drawn and paired. Mini-reasoning: about 8 answers a question."""

    prompts: int = Field(default=0, ge=0, description="ask so many of the problems; 0: all")
    group: int = Field(default=8, ge=1, description="answers to each problem")
    max_tokens: int = Field(default=256, ge=2, description="longest answer")
    temperature: float = Field(default=1.0, gt=0, description="of the draws")
    top_p: float = Field(default=1.0, gt=0, le=1, description="of the draws")
    pairs_per_prompt: int = Field(
        default=2, ge=0, description="at most so many pairs of a right and a wrong answer"
    )
    max_length_ratio: float = Field(
        default=2.0, ge=1, description="of a pair's longer answer to its shorter one, at most"
    )
    max_batch: int = Field(default=256, ge=1, description="answers in the making at once")


class DistillSettings(NextTokenSettings):
    """Training on right answers of a teacher. Mini-reasoning's step 1: packed, 16K tokens, 128
    rows, LR 1e-5, 5 epochs, 10 % warm-up; step 2: unpacked, 20K, the hard ones alone."""

    lr: float = Field(default=1e-5, gt=0, description="peak learning rate")
    warmup: float = Field(default=0.1, ge=0, description="share of the steps, or their number")
    epochs: float = Field(default=5.0, gt=0, description="passes over the answers")
    batch_rows: int = Field(default=128, ge=1, description="rows per step")
    context: int | None = Field(default=None, ge=8, description="tokens per row; the model's")
    packing: bool = Field(
        default=True, description="several answers in a row (step 1), or one (step 2)"
    )
    max_accuracy: float = Field(
        default=1.0, ge=0, le=1,
        description="leave out problems with a larger share of right answers: keep the hard ones",
    )  # fmt: skip


def run_rollouts(ctx: Context, settings: RolloutsSettings, inputs: Inputs) -> dict[str, Any]:
    """Draws answers to the problems, verifies them, and pairs right ones with wrong ones.

    Returns:
        how many problems, rollouts, pairs and drawn tokens there are, how many problems were too
        long, and the share of right answers.

    Raises:
        PhikitError: the model or the problems cannot be read, or no problem fits the context.
    """
    from phikit.chat.format import chat_format
    from phikit.engine.base import collect
    from phikit.engine.local import LocalEngine
    from phikit.models import checkpoint
    from phikit.records import Pair, Rollout, write_records
    from phikit.train.models import load_tokenizer, model_of
    from phikit.verify.base import ByName, read_problems

    model = checkpoint.load(model_of(inputs["model"]))
    chat = chat_format(load_tokenizer(inputs["model"]))
    problems = read_problems(inputs["problems"])
    chosen, too_long = _drawn(
        problems, settings.prompts, chat, model.config.max_positions, ctx.seed
    )
    engine, verifier = LocalEngine(model, settings.max_batch), ByName()
    rollouts: list[Rollout] = []
    pairs: list[Pair] = []
    at_once = max(1, settings.max_batch // settings.group)
    for start in range(0, len(chosen), at_once):
        part = chosen[start : start + at_once]
        made = collect(engine, _requests(part, settings, chat, ctx.seed))
        asked = [sample for sample, _ in part]
        for sample, judged in zip(asked, _judged(asked, made, chat, verifier), strict=True):
            rollouts += judged
            kind = "refusal" if sample.verifier == "refusal" else "rollout"
            pairs += rollout_pairs(
                judged, settings.pairs_per_prompt, settings.max_length_ratio, kind
            )
        ctx.cost.tokens_generated = engine.tokens_generated
        ctx.progress.update(start + len(part), len(chosen), pairs=len(pairs))
    write_records(ctx.dir / "rollouts.parquet", rollouts, Rollout)
    write_records(ctx.dir / "pairs.parquet", pairs, Pair)
    right = sum(r.verdict is not None and r.verdict.passed for r in rollouts)
    return {
        "problems": len(chosen), "too_long": too_long,
        "rollouts": len(rollouts), "pairs": len(pairs),
        "right": round(right / max(1, len(rollouts)), 4),
        "tokens": sum(len(r.completion_ids) for r in rollouts),
    }  # fmt: skip


def _drawn(
    problems: Sequence[Sample], count: int, chat: ChatFormat, context: int, seed: int
) -> tuple[list[Asked], int]:
    """So many of the problems in a random order, all when the count is 0; and how many others
    were passed over because their prompts fill the context.

    Raises:
        PhikitError: all do.
    """
    import numpy as np

    from phikit.engine.base import none_fits

    chosen: list[Asked] = []
    too_long = 0
    for at in np.random.default_rng([seed, 0x726F6C]).permutation(len(problems)):
        if len(chosen) == (count or len(problems)):
            break
        ids = tuple(chat.render(problems[at].prompt, generation_prompt=True).ids)
        if len(ids) < context:
            chosen.append((problems[at], ids))
        else:
            too_long += 1
    if not chosen:
        raise none_fits("train.rollouts", len(problems), context)
    return chosen, too_long


def _requests(
    asked: Sequence[Asked], settings: RolloutsSettings, chat: ChatFormat, seed: int
) -> list[Request]:
    from phikit.engine.base import Request, Sampling

    sampling = Sampling(
        temperature=settings.temperature, top_p=settings.top_p, max_tokens=settings.max_tokens,
        stop_ids=tuple(chat.stop_ids),
    )  # fmt: skip
    return [Request(ids, sampling, settings.group, _seed(seed, s.id)) for s, ids in asked]


def _seed(seed: int, problem: str) -> int:
    """A problem's own stream: its answers do not depend on what is asked beside it."""
    text = f"{seed}/rollouts/{problem}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())


def _judged(
    problems: Sequence[Sample],
    made: Sequence[Sequence[Rollout]],
    chat: ChatFormat,
    verifier: Verifier,
) -> Iterator[list[Rollout]]:
    """Each problem's rollouts with their verdicts; all of them are verified in one call."""
    from phikit.verify.base import Problem

    items = [
        (Problem.of(s), chat.text(r.completion_ids))
        for s, group in zip(problems, made, strict=True)
        for r in group
    ]
    verdicts = iter(verifier.verify(items))
    for sample, group in zip(problems, made, strict=True):
        yield [
            dataclasses.replace(r, id="", verdict=next(verdicts), meta={"problem": sample.id})
            for r in group
        ]


def rollout_pairs(
    group: Sequence[Rollout], most: int, ratio: float, kind: str = "rollout"
) -> list[Pair]:
    """Right above wrong answers of one problem, of like lengths so that length is not learned.

    Only answers that ended are chosen; a cut-off one may be rejected. Each answer is used once.
    """
    from phikit.records import Pair

    right = [r for r in group if r.verdict and r.verdict.passed and r.finish == "stop"]
    wrong = [r for r in group if r.verdict and not r.verdict.passed and r.completion_ids]
    found: list[Pair] = []
    for good in right:
        near = sorted(wrong, key=lambda r: abs(len(r.completion_ids) - len(good.completion_ids)))
        if len(found) == most or not near:
            break
        bad = near[0]
        short, long = sorted((len(good.completion_ids), len(bad.completion_ids)))
        if long > ratio * short:
            continue
        wrong.remove(bad)
        found.append(
            Pair(
                prompt_ids=good.prompt_ids,
                chosen_ids=good.completion_ids,
                rejected_ids=bad.completion_ids,
                kind=kind,
                evidence={"lengths": [len(good.completion_ids), len(bad.completion_ids)]},
                parents=(good.id, bad.id),
            )
        )
    return found


def run_distill(ctx: Context, settings: DistillSettings, inputs: Inputs) -> dict[str, Any]:
    """Trains on the right answers among rollouts: prompt and answer as drawn, loss on the answer.

    Raises:
        PhikitError: no answer is left, or the context or a token id is beyond the model.
    """
    from phikit.data.pack import pack
    from phikit.records import Rollout, read_records
    from phikit.train.fitting import check_ids, check_length
    from phikit.train.models import model_files, pad_id, starting_model

    model = starting_model(inputs["model"], settings, ctx.seed)
    context = settings.context or model.config.max_positions
    check_length(context, model.config, "train.distill: context", "lower it")
    rollouts: list[Rollout] = []
    files = [folder / "rollouts.parquet" for folder in given(inputs, "rollouts")]
    for path in files:
        for r in read_records(path, Rollout):
            ids = (*r.prompt_ids, *r.completion_ids)
            check_ids(ids, model.config, f"{path}: rollout {r.id}")
            rollouts.append(r)
    kept = right_answers(rollouts, settings.max_accuracy)
    if not kept:
        raise PhikitError(
            f"train.distill: none of {len(rollouts)} answers is right, ended, and to a problem "
            f"with at most {settings.max_accuracy:g} right answers",
            "draw more, of an abler model, or raise max_accuracy",
        )
    examples = [answer_example(r) for r in kept]
    rows = pack(
        examples, context, pad_id(model), overlong="truncate",
        window=8192 if settings.packing else 1,
    )  # fmt: skip
    data = [*files, *model_files(inputs["model"])]
    done = _next_token(
        ctx, settings, model, rows, inputs["model"] / "model", data, lambda n: kept[n].id
    )  # fmt: skip
    return done | {"answers": len(kept), "of": len(rollouts)}


def answer_example(rollout: Rollout) -> Example:
    """Its ids as they were drawn, the answer alone trained on."""
    prompt, answer = rollout.prompt_ids, rollout.completion_ids
    return [*prompt, *answer], [False] * len(prompt) + [True] * len(answer)


def right_answers(rollouts: Sequence[Rollout], max_accuracy: float) -> list[Rollout]:
    """The right answers that ended, of problems that are hard enough; equal answers once."""
    of: dict[Any, list[Rollout]] = {}
    for r in rollouts:
        of.setdefault(r.meta.get("problem", r.prompt_ids), []).append(r)
    kept: list[Rollout] = []
    for group in of.values():
        right = [r for r in group if r.verdict is not None and r.verdict.passed]
        if len(right) <= max_accuracy * len(group):
            distinct = {r.completion_ids: r for r in right if r.finish == "stop"}
            kept += distinct.values()
    return kept


def _rollouts_size(settings: RolloutsSettings) -> Estimate:
    count = settings.prompts * settings.group
    drawn = count * settings.max_tokens / 3  # answers are seldom as long as they may be
    return Estimate(
        f"{settings.prompts or 'all'} × {settings.group} answers",
        tokens=drawn / 2,  # about half of them are right, and learned from
        generated=drawn,
    )


STAGES: list[Stage[Any]] = [
    Stage(
        "train.rollouts", RolloutsSettings, run_rollouts, ("model", "problems"),
        estimate=_rollouts_size, help="draw and verify answers; pairs of right and wrong ones",
    ),
    Stage(
        "train.distill", DistillSettings, run_distill, ("model", "rollouts*"),
        resumable=True, estimate=_size, help="learn a teacher's right answers, ids as drawn",
    ),
]  # fmt: skip
