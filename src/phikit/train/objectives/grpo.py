"""Group relative policy optimisation with verified rewards.

Source: Phi-4-reasoning report, section 4.1; stabilisers: Phi-4-mini-reasoning report, section 3.
Shapes: N completion tokens of a forest, S completions.

Every iteration asks an engine, on the very weights being trained, or a pool of engines with copies
of them, for a group of answers to each problem, has them verified and rewarded, and compares each
with its group. Engines may draw under slightly other rounding than training computes (the local one
does not where `rollouts.as_trained` holds); the difference of log-probabilities is logged in every
step and corrected for by truncated importance weights (Yao et al. 2025).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phikit.chat.format import ChatFormat
from phikit.engine.base import Request, Sampling
from phikit.models.decoder import Decoder
from phikit.records import Rollout, Sample
from phikit.train import parallel
from phikit.train.adapters import merged, without
from phikit.train.loop import Loss, StepBatch, autocast
from phikit.train.objectives.drawing import Drawer, LocalDrawer
from phikit.train.objectives.grouping import Group, balanced, keep, mean, reward_group
from phikit.train.objectives.grpo_settings import GrpoLoss, RolloutSettings
from phikit.train.objectives.trees import Forest, groups, plant
from phikit.verify.base import ByName, Problem

_SHUFFLE = 0x6772706F  # the random stream of problem orders


@dataclass(frozen=True)
class RolloutBatch:
    """Completions of one microbatch.

    Attributes:
        advantages_S: (reward - mean) / std of the group.
        weights_S: what each token of a completion counts.
        engine_N: log-probabilities that the engine sampled with.
        old_N: log-probabilities before the iteration's first update; None where they are the
            current ones.
        reference_N: log-probabilities of the frozen reference; None where it is the old policy.
    """

    forest: Forest
    advantages_S: Tensor
    weights_S: Tensor
    engine_N: Tensor
    temperature: float
    old_N: Tensor | None
    reference_N: Tensor | None


def grpo_loss(
    logprobs_N: Tensor, entropy_N: Tensor, batch: RolloutBatch, settings: GrpoLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed, weighted token losses and metrics; see `GrpoLoss` for the terms."""
    owners_N = batch.forest.owners_N
    advantage_N, weight_N = batch.advantages_S[owners_N], batch.weights_S[owners_N]
    old_N = logprobs_N.detach() if batch.old_N is None else batch.old_N
    ratio_N = (logprobs_N - old_N).exp()
    clipped_N = ratio_N.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    gain_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
    gap_N = old_N - batch.engine_N
    if settings.importance_cap:
        gain_N = gain_N * gap_N.exp().clamp(max=settings.importance_cap)
    anchor_N = old_N if batch.reference_N is None else batch.reference_N
    away_N = anchor_N - logprobs_N
    kl_N = away_N.exp() - away_N - 1  # Schulman's k3: unbiased, never negative
    loss_N = -gain_N + settings.kl * kl_N - settings.entropy * entropy_N
    sums = {
        "kl": kl_N,
        "entropy": entropy_N,
        "clipped": (ratio_N * advantage_N > clipped_N * advantage_N).float(),
        "engine_gap": gap_N.abs(),
    }
    return (loss_N * weight_N).sum(), {k: (v.detach() * weight_N).sum() for k, v in sums.items()}


class Grpo:
    """Problems in, rollouts, rewards and advantages made on the way.

    `reference` is a frozen copy of the first weights, if the KL term is measured against it; the
    model itself when an adapter is trained, for it is taken off then. `drawer` is where rollouts
    come from; the local engine when left out. Whoever gave it closes it.
    """

    def __init__(
        self,
        model: Decoder,
        chat: ChatFormat,
        problems: Sequence[Sample],
        rollouts: RolloutSettings,
        loss: GrpoLoss,
        steps: int,
        micro_tokens: int,
        precision: str,
        seed: int,
        reference: Decoder | None = None,
        lanes: int = 1,
        drawer: Drawer | None = None,
    ) -> None:
        self.model, self.chat, self.problems = model, chat, problems
        self.rollouts, self.settings = rollouts, loss
        self.steps, self.micro_tokens, self.precision = steps, micro_tokens, precision
        self.seed, self.reference, self.lanes = seed, reference, lanes
        self.verifier = ByName()
        self.drawer = drawer or LocalDrawer(rollouts)
        self.waiting: list[StepBatch[RolloutBatch]] = []
        self.accuracy: dict[int, float] = {}  # of each problem, when it was last asked

    def draw(self, step: int) -> StepBatch[RolloutBatch]:
        if not self.waiting:
            self.waiting = self._iteration(step)
        return self.waiting.pop(0)

    def loss(self, model: Decoder, micro: RolloutBatch) -> Loss:
        logprobs_N, entropy_N = micro.forest.logprobs(model, micro.temperature, entropy=True)
        return Loss(*grpo_loss(logprobs_N, entropy_N, micro, self.settings))

    def state(self) -> dict[str, Any]:
        """How hard the problems were; the rest of an iteration follows from step and weights.

        Checkpoints fall between iterations, never within one.
        """
        assert not self.waiting
        if not self.rollouts.hard_share:
            return {}
        return {"accuracy": {str(i): share for i, share in self.accuracy.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.waiting = []
        self.accuracy = {int(i): share for i, share in state.get("accuracy", {}).items()}

    def temperature(self, step: int) -> float:
        """Linear from the first to the last value over a share of the steps, then fixed."""
        r = self.rollouts
        last = r.temperature if r.temperature_end is None else r.temperature_end
        done = min(1.0, step / max(1.0, r.anneal_share * self.steps))
        return r.temperature + (last - r.temperature) * done

    def _iteration(self, step: int) -> list[StepBatch[RolloutBatch]]:
        """Samples, verifies, rewards and filters; one batch per update.

        Several processes all get the same rollouts: each gathers the whole weights for it.
        """
        policy = merged(parallel.whole(self.model))
        iteration = step // self.settings.updates
        temperature = self.temperature(step)
        numbers = self._chosen(iteration)
        samples = [self.problems[i] for i in numbers]
        sampling = Sampling(
            temperature=temperature,
            max_tokens=self.rollouts.max_tokens,
            stop_ids=tuple(self.chat.stop_ids),
        )
        requests = [
            Request(
                tuple(self.chat.render(s.prompt, generation_prompt=True).ids),
                sampling,
                n=self.rollouts.group,
                seed=self._seed(iteration, i),
            )
            for i, s in enumerate(samples)
        ]
        made = self._judged(samples, self.drawer.draw(policy, requests))
        for number, group in zip(numbers, made, strict=True):
            self.accuracy[number] = mean([float(x) for x in group.right])
        stream = np.random.default_rng([self.seed, _SHUFFLE, 1, iteration])
        kept = [g for g in made if keep(g, self.rollouts)]
        if self.rollouts.balance:
            kept = [balanced(g, stream) for g in kept]
        rows = [(g, i) for g in kept for i in range(len(g.rollouts))]
        asked = tuple(s.id for s in samples)
        order = stream.permutation(len(rows)) if self.settings.updates > 1 else range(len(rows))
        shares = np.array_split(np.array(order, dtype=np.int64), self.settings.updates)
        batches = [
            self._batch([rows[i] for i in share], temperature, step, asked) for share in shares
        ]
        batches[0].generated = sum(len(r.completion_ids) for g in made for r in g.rollouts)
        batches[0].metrics.update(self._metrics(made, kept, temperature))
        return batches

    def _judged(self, samples: Sequence[Sample], made: list[list[Rollout]]) -> list[Group]:
        items = [
            (Problem.of(sample), self.chat.text(r.completion_ids))
            for sample, rollouts in zip(samples, made, strict=True)
            for r in rollouts
        ]
        verdicts = iter(self.verifier.verify(items))
        texts = iter(text for _, text in items)
        return [
            reward_group(
                rollouts,
                [next(verdicts).passed for _ in rollouts],
                [next(texts) for _ in rollouts],
                set(self.chat.stop_ids),
                self.rollouts,
            )
            for rollouts in made
        ]

    def _batch(
        self, rows: list[tuple[Group, int]], temperature: float, step: int, asked: tuple[str, ...]
    ) -> StepBatch[RolloutBatch]:
        sizes = [len(g.rollouts[i].prompt_ids) + len(g.rollouts[i].completion_ids) for g, i in rows]
        micros = [
            self._micro([rows[j] for j in part], temperature)
            for part in groups(sizes, self.micro_tokens, self.lanes)
        ]
        tokens = sum(m.forest.tokens for m in micros)
        return StepBatch(
            micros=micros,
            weight=float(sum((m.weights_S * m.forest.lengths_S).sum() for m in micros)) or 1.0,
            tokens=tokens,
            context=sum(m.forest.context for m in micros) / max(1, tokens),
            name=f"rollouts of step {step + 1}",
            ids=lambda: asked,
        )

    def _micro(self, rows: list[tuple[Group, int]], temperature: float) -> RolloutBatch:
        rollouts = [g.rollouts[i] for g, i in rows]
        forest = plant([(r.prompt_ids, (r.completion_ids,)) for r in rollouts])
        by_token = self.settings.mean_over == "tokens"
        weights_S = torch.ones(len(rows)) if by_token else 1.0 / forest.lengths_S
        several = self.settings.updates > 1
        return RolloutBatch(
            forest=forest,
            advantages_S=torch.tensor([g.advantages[i] for g, i in rows], dtype=torch.float32),
            weights_S=weights_S,
            engine_N=torch.tensor([x for r in rollouts for x in r.logprobs]),
            temperature=temperature,
            old_N=self._frozen(self.model, forest, temperature) if several else None,
            reference_N=(
                None if self.reference is None else self._first(self.reference, forest, temperature)
            ),
        )

    @torch.no_grad()
    def _frozen(self, model: Decoder, forest: Forest, temperature: float) -> Tensor:
        was = model.training
        model.eval()  # an adapter's dropout is of the update, not of the policy that drew
        try:
            with autocast(model, self.precision):
                return forest.logprobs(model, temperature).logprobs_N
        finally:
            model.train(was)

    def _first(self, reference: Decoder, forest: Forest, temperature: float) -> Tensor:
        with without(reference):
            return self._frozen(reference, forest, temperature)

    def _metrics(
        self, made: list[Group], kept: list[Group], temperature: float
    ) -> dict[str, float]:
        rollouts = [r for g in made for r in g.rollouts]
        return {
            "reward": mean([x for g in made for x in g.rewards]),
            "right": mean([float(x) for g in made for x in g.right]),
            "length": mean([float(len(r.completion_ids)) for r in rollouts]),
            "cut_off": mean([float(r.finish == "length") for r in rollouts]),
            "groups": float(len(made)),
            "groups_kept": float(len(kept)),
            "temperature": temperature,
        }

    def _chosen(self, iteration: int) -> list[int]:
        """This iteration's problems: hard ones again, and the endless sequence of shuffled epochs.

        Hard is what was answered rightly sometimes, but in less than half of the answers; the
        hardest come first, and those of equal share in an order of the iteration's own.
        """
        count = len(self.problems)
        again = round(self.rollouts.hard_share * self.rollouts.prompts)
        stream = np.random.default_rng([self.seed, _SHUFFLE, 2, iteration])
        hard = [i for i, share in sorted(self.accuracy.items()) if 0 < share < 0.5]
        hard = [hard[i] for i in stream.permutation(len(hard))] if again else []
        hard = sorted(hard, key=self.accuracy.__getitem__)[:again]
        n = self.rollouts.prompts - again  # new ones, whether or not there are hard ones yet
        orders: dict[int, Any] = {}
        chosen: list[int] = []
        for position in range(iteration * n, iteration * n + n):
            epoch, place = divmod(position, count)
            if epoch not in orders:
                order = np.random.default_rng([self.seed, _SHUFFLE, 0, epoch])
                orders[epoch] = order.permutation(count)
            chosen.append(int(orders[epoch][place]))
        return chosen + hard

    def _seed(self, iteration: int, index: int) -> int:
        text = f"{self.seed}/grpo/{iteration}/{index}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest())
