"""One tiny run per objective, for the stored curves and the tests of resuming.

Run as a program it trains in the given folder: `python train_runs.py OBJECTIVE FOLDER`, or writes
the stored curves: `python train_runs.py curves`.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from train_fixtures import tiny_model, tiny_rows

from phikit.data.pack import Batches, Rows, pack
from phikit.files import Journal
from phikit.models import checkpoint
from phikit.records import Pair, Rollout, Sample, Verdict
from phikit.stage import Context
from phikit.train import loop, parallel
from phikit.train.adapters import adapt, merged
from phikit.train.models import extended
from phikit.train.objectives.dpo import Dpo, reference_logprobs
from phikit.train.objectives.dpo_settings import DpoLoss
from phikit.train.objectives.drawing import drawer
from phikit.train.objectives.grpo import Grpo
from phikit.train.objectives.grpo_settings import GeneratorSettings, GrpoLoss, RolloutSettings
from phikit.train.objectives.next_token import NextToken
from phikit.train.settings import (
    LoraSettings,
    OptimiserSettings,
    ParallelSettings,
    TrainSettings,
)
from phikit.train.stage_rollouts import answer_example, right_answers
from phikit.verify.base import VERIFIERS, Problem

# "adamw" is pre-training; the others are named after their objective or what they try
STEPS = {
    "adamw": 12, "muon": 12, "bf16": 12, "lora": 12, "midtrain": 8, "sft": 8, "distill": 8,
    "dpo": 10, "pivots": 10, "grpo": 6,
}  # fmt: skip


class Rendered:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


class ToyChat:
    """Token ids for characters: a stand-in for a chat format, with 1 as the end token."""

    stop_ids = (1,)

    def render(self, messages: Sequence[Any], generation_prompt: bool = False) -> Rendered:
        return Rendered([2 + ord(c) % 62 for c in messages[0]["content"]])

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(str(i) for i in ids)


class Even:
    """Right when most tokens of the answer are even: learnable without language."""

    name = "even"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        verdicts = []
        for _, text in items:
            ids = [int(x) for x in text.split()]
            share = sum(i % 2 == 0 for i in ids) / max(1, len(ids))
            verdicts.append(Verdict(passed=share > 0.5, score=share, reason="", verifier=self.name))
        return verdicts


def pairs(count: int, completion: int) -> list[Pair]:
    stream = random.Random("pairs")

    def ids(n: int) -> tuple[int, ...]:
        return tuple(stream.randrange(2, 64) for _ in range(n))

    return [
        Pair(
            prompt_ids=ids(stream.randrange(3, 12)),
            chosen_ids=ids(stream.randrange(1, completion + 1)),
            rejected_ids=ids(stream.randrange(1, completion + 1)),
            kind="rollout",
        )
        for _ in range(count)
    ]


def answers() -> list[Rollout]:
    """Two answers to each of some problems, every second one right; one of them cut off."""
    stream = random.Random("answers")
    verdicts = [Verdict(passed=ok, score=float(ok), reason="", verifier="toy") for ok in (0, 1)]
    return [
        Rollout(
            prompt_ids=(2 + problem, 3, 4),
            completion_ids=(*(stream.randrange(2, 64) for _ in range(9)), 1),
            logprobs=(0.0,) * 10,
            finish="length" if problem == 5 else "stop",
            verdict=verdicts[number],
            meta={"problem": str(problem)},
        )
        for problem in range(24) for number in range(2)
    ]  # fmt: skip


def next_token_rows(name: str) -> Rows:
    """What the stage of that name trains on."""
    if name == "midtrain":
        return tiny_rows(length=96)
    if name == "sft":  # the second half of each sample is the assistant's
        plain = [(ids, [i >= len(ids) // 2 for i in range(len(ids))]) for ids in samples()]
        return pack(plain, 32, 0, overlong="truncate")
    if name == "distill":
        return pack([answer_example(r) for r in right_answers(answers(), 0.5)], 32, 0)
    return tiny_rows()


def samples() -> list[list[int]]:
    stream = random.Random("samples")
    return [[stream.randrange(2, 64) for _ in range(stream.randrange(6, 20))] for _ in range(40)]


def grpo(
    model: Any,
    loss: GrpoLoss | None = None,
    generator: GeneratorSettings | None = None,
    **rollouts: Any,
) -> Grpo:
    VERIFIERS["even"] = Even
    problems = [
        Sample(kind="toy", source="toy", verifier="even",
               messages=({"role": "user", "content": f"task {i}"},))
        for i in range(10)
    ]  # fmt: skip
    settings = RolloutSettings(
        **{"prompts": 4, "group": 4, "max_tokens": 11, "reward": "sign"} | rollouts
    )
    return Grpo(
        model, ToyChat(), problems, settings, loss or GrpoLoss(),  # type: ignore[arg-type]
        STEPS["grpo"], 10_000, "f32", seed=3,
        drawer=drawer(settings, generator or GeneratorSettings()),
    )  # fmt: skip


def run(name: str, ctx: Context, every: int = 3, tensor: int = 1, context: int = 1) -> Any:
    """Trains the run of that name in the context's folder; returns the model."""
    model = tiny_model(kv_heads=4 if name == "four" else 2)
    kind = "muon" if name == "muon" else "adamw"
    settings = TrainSettings(
        lr=3e-3 if name in ("dpo", "pivots", "grpo", "grpo-ray") else 1e-2,
        precision="bf16" if name == "bf16" else "f32",
        optimiser=OptimiserSettings(kind=kind),  # type: ignore[arg-type]
        checkpoint_every=2 if name.startswith("grpo") else every,
        warmup=2,
        parallel=ParallelSettings(tensor=tensor, context=context),
    )
    if name == "midtrain":
        model = extended(model, 96, 50_000.0)
    if name == "lora":
        adapt(model, LoraSettings(rank=4, alpha=16), 3)
    objective: Any
    if name in ("grpo", "grpo-ray"):
        pool = GeneratorSettings(kind="ray", workers=2) if name == "grpo-ray" else None
        objective = grpo(model, GrpoLoss(updates=2, kl=0.1, kl_to="reference"), pool)
        objective.reference = tiny_model()
    elif name in ("dpo", "pivots"):
        chosen = pairs(20, 8 if name == "dpo" else 1)
        reference = reference_logprobs(model, chosen, 200, "f32")
        objective = Dpo(chosen, reference, DpoLoss(), 8, 100, seed=3)
    else:
        objective = NextToken(Batches(next_token_rows(name), 8, 3), microbatch=3)
    steps = STEPS["grpo"] if name == "grpo-ray" else STEPS.get(name, 12)
    try:
        loop.train(ctx, model, objective, settings, steps)
    finally:
        if isinstance(objective, Grpo):
            objective.drawer.close()
    model = parallel.whole(model)
    if parallel.rank() == 0:
        checkpoint.save(merged(model), ctx.dir / "model", torch.float32)
    return model


def write_curves(path: Path) -> None:
    lines = []
    for name in STEPS:
        with tempfile.TemporaryDirectory() as folder:
            ctx = Context(Path(folder))
            run(name, ctx)
            losses = [round(row["loss"], 7) for row in ctx.metrics.rows]
        lines.append(f"  {json.dumps(name)}: {losses}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


class StopAfter:
    """A display that ends the run after so many steps, as a kill would; never with 0."""

    def __init__(self, stop: int) -> None:
        self.stop = stop

    def update(self, done: float, total: float, **fields: float | str) -> None:
        if done == self.stop:
            raise KeyboardInterrupt


def in_processes(name: str, folder: Path, stop: int, tensor: int = 1, context: int = 1) -> None:
    """The run in this process, or as one of those that torchrun started."""
    if parallel.launched():
        parallel.join()
    with tempfile.TemporaryDirectory() as scratch:
        ctx = Context(folder)
        if parallel.rank():  # the first one's metrics are the run's
            ctx._metrics = Journal(Path(scratch) / "metrics.jsonl")
        ctx.progress = StopAfter(stop)
        with suppress(KeyboardInterrupt):
            run(name, ctx, tensor=tensor, context=context)
    parallel.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "curves":
        write_curves(Path(__file__).with_name("curves.json"))
    else:
        in_processes(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:] or ["0"]))
