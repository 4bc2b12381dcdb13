"""GRPO: the loss against a plain reference, groups and stabilisers, engine against trainer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from train_fixtures import tiny_model
from train_runs import grpo

from phikit.models.decoder import Decoder
from phikit.records import Rollout
from phikit.train.objectives.grouping import Group, balanced, keep
from phikit.train.objectives.grpo import RolloutBatch, grpo_loss
from phikit.train.objectives.grpo_settings import GrpoLoss, RolloutSettings
from phikit.train.objectives.trees import plant


def group(right: list[bool], lengths: list[int] | None = None) -> Group:
    lengths = lengths or [4] * len(right)
    rollouts = tuple(
        Rollout(prompt_ids=(1,), completion_ids=tuple(range(n)), logprobs=(0.0,) * n, meta={"i": i})
        for i, n in enumerate(lengths)
    )
    return Group(rollouts, tuple(right), tuple(1.0 if r else -1.0 for r in right))


def test_advantages() -> None:
    assert group([True, False, False, False]).advantages == pytest.approx(
        [3**0.5, *[-(3**-0.5)] * 3]
    )
    assert group([True, True]).advantages == [0.0, 0.0]


def test_which_groups_are_kept() -> None:
    plain = RolloutSettings(max_tokens=10)
    assert keep(group([True, False]), plain)
    assert not keep(group([True, True]), plain)  # nothing to learn
    hard = RolloutSettings(max_tokens=10, max_group_accuracy=0.5)
    assert keep(group([True, False]), hard)
    assert not keep(group([True, True, False]), hard)
    uniform = RolloutSettings(max_tokens=10, max_length_spread=0.4)
    assert keep(group([True, False], [2, 6]), uniform)
    assert not keep(group([True, False], [2, 7]), uniform)


def test_balancing_keeps_every_right_answer() -> None:
    whole = group([True, False, False, True, False, False, False])
    small = balanced(whole, np.random.default_rng(0))
    assert sum(small.right) == 2 and len(small.right) == 4
    assert len(small.rollouts) == len(small.rewards) == 4
    mostly_right = group([True, True, False])
    assert balanced(mostly_right, np.random.default_rng(0)) is mostly_right


def plain_loss(logp, entropy, batch: RolloutBatch, s: GrpoLoss) -> float:  # type: ignore[no-untyped-def]
    """The same, token by token."""
    total = 0.0
    for n, owner in enumerate(batch.forest.owners_N.tolist()):
        lp, old = float(logp[n]), float(batch.old_N[n])
        advantage = float(batch.advantages_S[owner])
        ratio = np.exp(lp - old)
        clipped = min(max(ratio, 1 - s.clip_low), 1 + s.clip_high)
        gain = min(ratio * advantage, clipped * advantage)
        gain *= min(np.exp(old - float(batch.engine_N[n])), s.importance_cap)
        away = float(batch.reference_N[n]) - lp
        kl = np.exp(away) - away - 1
        term = -gain + s.kl * kl - s.entropy * float(entropy[n])
        total += float(batch.weights_S[owner]) * term
    return total


def test_loss_equals_the_plain_one() -> None:
    g = torch.Generator().manual_seed(0)
    forest = plant([((1, 2), [(3, 4, 5)]), ((1,), [(6,)]), ((2,), [(3, 4)])])
    logp, entropy = -torch.rand(6, generator=g), torch.rand(6, generator=g)

    def near() -> torch.Tensor:
        return logp + torch.randn(6, generator=g) * 0.5

    batch = RolloutBatch(
        forest, torch.tensor([1.0, -1.5, 0.5]), torch.tensor([1 / 3, 1.0, 0.5]),
        near(), 1.0, near(), near(),
    )  # fmt: skip
    settings = GrpoLoss(kl=0.1, entropy=0.05, importance_cap=1.3)
    loss, sums = grpo_loss(logp, entropy, batch, settings)
    assert float(loss) == pytest.approx(plain_loss(logp, entropy, batch, settings), rel=1e-5)
    assert float(sums["entropy"]) == pytest.approx(
        float((entropy * batch.weights_S[forest.owners_N]).sum())
    )


def test_engine_and_trainer_agree(model: Decoder) -> None:
    for temperature in (1.0, 0.7):
        objective = grpo(model, temperature=temperature)
        batch = objective.draw(0)
        assert batch.micros and batch.generated > 0
        for micro in batch.micros:
            got = micro.forest.logprobs(model, temperature).logprobs_N
            torch.testing.assert_close(got, micro.engine_N, rtol=1e-4, atol=1e-4)


def test_rollouts_are_the_same_again(model: Decoder) -> None:
    first, second = (grpo(model).draw(5) for _ in range(2))
    for a, b in zip(first.micros, second.micros, strict=True):
        assert torch.equal(a.forest.ids_1T, b.forest.ids_1T)
        assert torch.equal(a.engine_N, b.engine_N)
    other = grpo(model).draw(4)
    assert not torch.equal(other.micros[0].forest.ids_1T, first.micros[0].forest.ids_1T)


def test_on_policy_gradient_pushes_right_answers(model: Decoder) -> None:
    """One step up the gradient makes what had a positive advantage more probable."""
    objective = grpo(model, GrpoLoss(kl=0, entropy=0))
    micro = objective.draw(0).micros[0]

    def gain() -> torch.Tensor:
        sums = micro.forest.per_completion(micro.forest.logprobs(model).logprobs_N)
        return (sums / micro.forest.lengths_S * micro.advantages_S).sum()

    before = float(gain().detach())
    objective.loss(model, micro).total.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.05 * p.grad
    assert float(gain().detach()) > before


def test_several_updates_share_one_iteration(model: Decoder) -> None:
    objective = grpo(model, GrpoLoss(updates=2, kl_to="reference"))
    objective.reference = tiny_model(1)
    first, second = objective.draw(0), objective.draw(1)
    assert "reward" in first.metrics and not second.metrics
    assert second.generated == 0
    for micro in [*first.micros, *second.micros]:
        assert micro.old_N is not None and micro.reference_N is not None
    assert objective.state() == {}


def test_temperature_is_annealed(model: Decoder) -> None:
    objective = grpo(model, temperature=1.0, temperature_end=0.6, anneal_share=0.5)
    assert [objective.temperature(s) for s in (0, 3, 6)] == pytest.approx([1.0, 0.6, 0.6])
    objective.steps = 100
    assert objective.temperature(25) == pytest.approx(0.8)
