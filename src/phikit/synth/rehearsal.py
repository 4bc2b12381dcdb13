"""A model's own conversations, to keep what it can do while it learns something else.

Training on one kind of task makes a model forget others. Its own answers to questions of its own
kind, mixed into the training set, hold it in place where it is not to move. The questions come from
the model as well: after the tokens that begin a user's turn it writes what users write (Magpie,
Xu et al. 2024, arXiv 2406.08464). They are nobody's data and show what this model was trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from phikit.engine.base import Precision, Sampling
from phikit.errors import PhikitError
from phikit.records import Rollout, Sample, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.synth.judge_pairs import draw, spend, stream_seed

if TYPE_CHECKING:
    from phikit.chat.format import ChatFormat
    from phikit.engine.local import LocalEngine


class RehearsalConfig(Config):
    """Which conversations a model has with itself."""

    count: int = Field(default=300, ge=1, description="conversations to keep, of two turns each")
    tries: int = Field(
        default=3, ge=1, description="at most so many questions are drawn for each to keep"
    )
    prompt_tokens: int = Field(default=96, ge=1, description="longest question")
    prompt_temperature: float = Field(default=0.8, gt=0, description="of the questions")
    max_tokens: int = Field(default=256, ge=1, description="longest answer")
    temperature: float = Field(default=0.5, ge=0, description="of the answers; 0: the likeliest")
    top_p: float = Field(default=0.95, gt=0, le=1, description="of both")
    batch: int = Field(default=64, ge=1, description="sequences generated at once")
    precision: Precision = Field(
        default="stored", description="of the weights; bf16 is faster where they are stored in f32"
    )


def questions(
    chat: ChatFormat, rollouts: Sequence[Rollout], known: set[str], dropped: Counter[str]
) -> Iterator[str]:
    """Those that came to their end, hold text, and are not known yet; `known` grows by them."""
    for rollout in rollouts:
        text = chat.text(rollout.completion_ids).strip()
        key = " ".join(text.casefold().split())
        if rollout.finish != "stop":
            dropped["unfinished questions"] += 1
        elif not key or "\N{REPLACEMENT CHARACTER}" in key:
            dropped["unreadable questions"] += 1
        elif key in known:
            dropped["repeated questions"] += 1
        else:
            known.add(key)
            yield text


def run_rehearsal(
    ctx: Context, config: RehearsalConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes samples.parquet: conversations of a question and an answer.

    Raises:
        PhikitError: the model or its chat format cannot be loaded, or it left no conversation.
    """
    from phikit.engine.load import open_chat

    engine, chat = open_chat(inputs["model"] / "model", config.batch, config.precision)
    dropped: Counter[str] = Counter()
    known: set[str] = set()
    kept: list[Sample] = []
    for turn in range(config.tries):
        wanted = config.count - len(kept)
        if not wanted:
            break
        asked = _questions(ctx, engine, chat, config, turn, wanted, known, dropped)
        for question, rollout in _answers(ctx, engine, chat, config, turn, asked):
            answer = chat.text(rollout.completion_ids).strip()
            if rollout.finish != "stop" or not answer:
                dropped["unfinished answers"] += 1
                continue
            messages = (
                {"role": "user", "content": question}, {"role": "assistant", "content": answer},
            )  # fmt: skip
            kept.append(Sample(kind="rehearsal", source="rehearsal", messages=messages))
            ctx.progress.update(len(kept), config.count)
    if not kept:
        raise PhikitError(
            f"synth.rehearsal: none of the model's {sum(dropped.values())} questions came to a "
            "conversation: " + ", ".join(f"{n} {why}" for why, n in sorted(dropped.items())),
            "give a model that was trained on conversations, or more max_tokens",
        )
    write_records(ctx.dir / "samples.parquet", kept, Sample)
    return {"accepted": len(kept), "dropped": dict(sorted(dropped.items()))}


def _questions(
    ctx: Context, engine: LocalEngine, chat: ChatFormat, config: RehearsalConfig,
    turn: int, wanted: int, known: set[str], dropped: Counter[str],
) -> list[str]:  # fmt: skip
    sampling = Sampling(
        temperature=config.prompt_temperature, top_p=config.top_p,
        max_tokens=config.prompt_tokens, stop_ids=chat.stop_ids,
    )  # fmt: skip
    opening = chat.opening("user")
    seed = stream_seed(ctx.seed, "rehearsal", turn, "questions")
    drawn = sorted(draw(engine, [opening], sampling, wanted, [seed]), key=lambda d: d[1])
    for _, sample, rollout in drawn:
        spend(ctx, engine, rollout, read=sample == 0)
    return list(questions(chat, [rollout for *_, rollout in drawn], known, dropped))


def _answers(
    ctx: Context, engine: LocalEngine, chat: ChatFormat, config: RehearsalConfig,
    turn: int, asked: Sequence[str],
) -> Iterator[tuple[str, Rollout]]:  # fmt: skip
    """Each question with its answer, in order."""
    sampling = Sampling(
        temperature=config.temperature, top_p=config.top_p if config.temperature else 1.0,
        max_tokens=config.max_tokens, stop_ids=chat.stop_ids,
    )  # fmt: skip
    prompts = [
        tuple(chat.render([{"role": "user", "content": q}], generation_prompt=True).ids)
        for q in asked
    ]
    seeds = [stream_seed(ctx.seed, "rehearsal", turn, "answers", i) for i in range(len(asked))]
    found: dict[int, Rollout] = {}
    for place, _, rollout in draw(engine, prompts, sampling, 1, seeds):
        found[place] = rollout
        ctx.progress.update(len(found), len(prompts))
        spend(ctx, engine, rollout, read=True)
    return ((question, found[i]) for i, question in enumerate(asked))


REHEARSAL_STAGES: list[Stage[Any]] = [
    Stage(
        verb="synth.rehearsal",
        config=RehearsalConfig,
        run=run_rehearsal,
        inputs=("model",),
        estimate=lambda c: Estimate(
            f"{c.count} conversations of the model's own, answers ≤ {c.max_tokens} tokens",
            seconds=1.0,
            tokens=c.count * 60.0,
            generated=c.count * (c.prompt_tokens / 2 + c.max_tokens / 2),
        ),
        help="the model's own questions and answers, mixed in against forgetting",
    )
]
