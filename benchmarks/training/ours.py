"""phikit's trainer for the training benchmark: the loop's own step, on the job's data."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import Clock, job

from phikit.data.pack import Batches, pack
from phikit.memory import keep_freed_memory
from phikit.models import checkpoint
from phikit.models.decoder_config import DecoderConfig
from phikit.records import Pair, Sample, Verdict
from phikit.stage import Context
from phikit.train import loop, parallel
from phikit.train.models import new_model
from phikit.train.objectives.dpo import Dpo, reference_logprobs
from phikit.train.objectives.dpo_settings import DpoLoss
from phikit.train.objectives.grpo import Grpo
from phikit.train.objectives.grpo_settings import GrpoLoss, RolloutSettings
from phikit.train.objectives.next_token import NextToken
from phikit.train.settings import OptimiserSettings, TrainSettings
from phikit.verify.base import VERIFIERS


class Steps:
    """The loop's display, as the benchmark's clock: each update is the end of a step."""

    def __init__(self, context: Context, tokens: Any) -> None:
        self.clock, self.context, self.tokens = Clock(), context, tokens
        self.clock.start()

    def update(self, done: float, total: float, **fields: float | str) -> None:
        self.clock.done(float(fields.get("loss", 0.0)), self.tokens())
        self.clock.start()


class InOrder(Batches):
    """Rows in the order they are in."""

    def _shuffled(self, epoch: int) -> Any:
        return np.arange(len(self.rows))


class Chat:
    """Prompts as they are in the job; nothing ends an answer early."""

    stop_ids = ()

    def render(self, messages: Any, generation_prompt: bool = False) -> Any:
        return type("Ids", (), {"ids": [int(x) for x in messages[0]["content"].split()]})

    def text(self, ids: Any) -> str:
        return " ".join(map(str, ids))


class LastEven:
    """Right when the last token is even: a reward that costs nothing."""

    name = "last-even"

    def verify(self, items: Any) -> list[Verdict]:
        right = [int(text.split()[-1]) % 2 == 0 for _, text in items]
        return [Verdict(passed=r, score=float(r), reason="", verifier=self.name) for r in right]


def model_of(spec: dict[str, Any]) -> Any:
    if "shape" in spec:
        return new_model(DecoderConfig(**spec["shape"]), 0)
    return checkpoint.load(Path(spec["model"]), torch.float32)


def main() -> None:
    spec = job()
    torch.set_num_threads(spec["threads"])
    keep_freed_memory()
    model = model_of(spec)
    o = spec["optimiser"]
    settings = TrainSettings(
        lr=o["lr"], schedule="constant", warmup=0, precision=spec["precision"],
        checkpoint_every=10**9, microbatch=spec.get("microbatch", 0),
        optimiser=OptimiserSettings(
            betas=tuple(o["betas"]), eps=o["eps"], weight_decay=0.0, clip=o["clip"]
        ),
    )  # fmt: skip
    objective, per_step = objective_of(spec, model, settings)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(Path(folder), threads=spec["threads"])
        context.progress = Steps(context, per_step)
        loop.train(context, model, objective, settings, 10**6)


def objective_of(spec: dict[str, Any], model: Any, settings: TrainSettings) -> tuple[Any, Any]:
    kind = spec["kind"]
    if kind in ("sft", "pretrain"):
        examples = [(ids, None) for ids in spec["rows"]]
        # packed, or one example a row in the job's order, which is how the peers take them
        ordered = spec["in_order"]
        rows = pack(examples, spec["length"], 0, window=1 if ordered else len(examples))
        batches = (InOrder if ordered else Batches)(rows, spec["batch"], 0)
        lanes = parallel.lanes(model.config.parameters, spec["threads"])  # as the stages cut it
        objective = Counted(batches, settings.microbatch or -(-spec["batch"] // lanes))
        return objective, lambda: objective.tokens
    if kind == "dpo":
        pairs = [
            Pair(prompt_ids=tuple(p), chosen_ids=tuple(c), rejected_ids=tuple(r), kind="rollout")
            for p, c, r in spec["pairs"]
        ]
        micro = spec["micro_tokens"]
        reference = reference_logprobs(model, pairs, micro, spec["precision"])
        dpo = OrderedDpo(pairs, reference, DpoLoss(), spec["batch"], micro, 0)
        return dpo, lambda: spec["batch"]
    VERIFIERS["last-even"] = LastEven
    problems = [
        Sample(kind="b", source="b", verifier="last-even",
               messages=({"role": "user", "content": " ".join(map(str, p))},))
        for p in spec["prompts"]
    ]  # fmt: skip
    rollouts = RolloutSettings(
        prompts=spec["batch"], group=spec["group"], max_tokens=spec["new"], reward="sign",
        precision=spec["precision"],
    )  # fmt: skip
    grpo = Grpo(
        model, Chat(), problems, rollouts, GrpoLoss(kl=0.0, entropy=0.0), 10**6,  # type: ignore[arg-type]
        spec["micro_tokens"], spec["precision"], 0,
    )  # fmt: skip
    return grpo, lambda: spec["batch"] * spec["group"] * spec["new"]


class Counted(NextToken):
    tokens = 0

    def draw(self, step: int) -> Any:
        batch = super().draw(step)
        self.tokens = int(batch.weight)
        return batch


class OrderedDpo(Dpo):
    def _at(self, position: int) -> int:
        return position % len(self.pairs)


if __name__ == "__main__":
    main()
