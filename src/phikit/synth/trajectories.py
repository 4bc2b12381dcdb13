"""The stage `synth.trajectories`: a teacher acts in an environment, call by call.

A trajectory that does its task is a sample of tool use in several turns; one that does not is
rejected with what went wrong. The environment is `phikit.synth.stockroom`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

from pydantic import Field

from phikit.files import canonical_json
from phikit.records import Sample, Verdict, write_records
from phikit.stage import Config, Context, Estimate, Stage
from phikit.synth.remote_teacher import Endpoint
from phikit.synth.replies import ReplyStore, Request
from phikit.synth.stockroom import CALL, TOOLS, Stockroom
from phikit.synth.stored_teacher import StoredTeacher
from phikit.synth.teachers import teacher_of

KIND = "agent-stockroom"


class TrajectoriesConfig(Config):
    """How many tasks, and how long the teacher may try.

    Attributes:
        count: tasks.
        turns: calls in one task, at most.
        temperature: of the teacher's calls.
        store: a file where replies are kept.
        local: a model on this machine in place of an endpoint.
        batch: answers that a model in this process generates at once.
        seed_tag: names the random streams.
    """

    count: int = Field(default=100, ge=1)
    turns: int = Field(default=16, ge=1)
    temperature: float = Field(default=0.5, ge=0)
    store: str = ""
    local: str = ""
    batch: int = Field(default=64, ge=1)
    teacher: Endpoint = Field(default_factory=Endpoint)
    seed_tag: str = "train"


async def play(
    teacher: StoredTeacher, room: Stockroom, config: TrajectoriesConfig, index: int
) -> tuple[Sample, str]:
    """One task: the sample with its verdict, and "failed" or "unsent" if the teacher was lost."""
    messages: list[Mapping[str, str]] = [
        {"role": "system", "content": TOOLS},
        {"role": "user", "content": room.task},
    ]
    replies: list[str] = []
    lost, why = "", ""
    for _ in range(config.turns):
        request = Request(tuple(messages), CALL, config.temperature, 80, index + 1)
        outcome = await teacher.ask(request)
        replies += outcome.replies[-1:]
        if outcome.status != "accepted":
            why = outcome.reason
            lost = outcome.status if outcome.status in ("failed", "unsent") else ""
            break
        messages.append({"role": "assistant", "content": canonical_json(outcome.value)})
        said = room.call(outcome.value)
        if room.finished is not None:
            break
        messages.append({"role": "user", "content": f"Result: {said}"})
    passed, reason = room.judge()
    verdict = Verdict(
        passed=passed, score=float(passed), reason=why or reason, verifier="environment"
    )
    sample = Sample(
        kind=KIND,
        source="synthetic",
        parents=tuple(replies),
        text="\n\n".join(m["content"] for m in messages),
        messages=tuple(messages),
        verdicts=(verdict,),
        meta={"teacher": teacher.name, "index": index, "calls": len(replies)},
    )
    return sample, lost


def run_trajectories(
    ctx: Context, config: TrajectoriesConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes samples.parquet and rejected.parquet."""
    store = ReplyStore(Path(config.store) if config.store else ctx.dir / "replies.jsonl")

    async def work() -> list[tuple[Sample, str]]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(store.close)
            teacher = await stack.enter_async_context(teacher_of(config, inputs, store, ctx.seed))
            done = 0

            async def one(index: int) -> tuple[Sample, str]:
                nonlocal done
                rng = Random(f"{ctx.seed}/{config.seed_tag}/{KIND}/{index}")
                found = await play(teacher, Stockroom.drawn(rng), config, index)
                done += 1
                ctx.progress.update(done, config.count)
                return found

            return list(await asyncio.gather(*map(one, range(config.count))))

    played = asyncio.run(work())
    good = [s for s, _ in played if s.verdicts[-1].passed]
    bad = [s for s, _ in played if not s.verdicts[-1].passed]
    write_records(ctx.dir / "samples.parquet", good, Sample)
    write_records(ctx.dir / "rejected.parquet", bad, Sample)
    ctx.cost.tokens_generated += store.completion_tokens
    reasons: dict[str, int] = {}
    for sample in bad:
        reason = sample.verdicts[-1].reason.partition(",")[0]
        reasons[reason] = reasons.get(reason, 0) + 1
    return {
        "played": len(played),
        "accepted": len(good),
        "rejected": dict(sorted(reasons.items())),
        "lost": sum(bool(lost) for _, lost in played),
    }


TRAJECTORIES: Stage[TrajectoriesConfig] = Stage(
    verb="synth.trajectories",
    config=TrajectoriesConfig,
    run=run_trajectories,
    inputs=("model?",),
    resumable=True,
    estimate=lambda c: Estimate(f"{c.count} tasks of up to {c.turns} calls", c.count),
    help="let a teacher act in a small environment, and keep what does its task",
)
