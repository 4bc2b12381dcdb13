"""DPO: the trees' log-probabilities, the loss by hand, the stored reference."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_fixtures import tiny_model
from train_runs import pairs

from phikit.errors import PhikitError
from phikit.models import checkpoint
from phikit.models.decoder import Decoder
from phikit.records import Pair
from phikit.train.objectives.dpo import (
    Dpo,
    dpo_loss,
    reference_logprobs,
    stored_reference,
)
from phikit.train.objectives.dpo_settings import DpoLoss
from phikit.train.objectives.mixing import mix
from phikit.train.objectives.trees import groups, plant, size


def by_itself(model: Decoder, prompt: tuple[int, ...], completion: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *completion]])
    logp = model(ids).log_softmax(-1)[0, len(prompt) - 1 : -1]
    return logp.gather(1, torch.tensor(completion)[:, None]).sum()


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(1, 6), min_size=1, max_size=4)),
        min_size=1, max_size=4,
    )
)  # fmt: skip
def test_a_branch_is_as_probable_as_alone(shapes: list[tuple[int, list[int]]]) -> None:
    stream = random.Random(0)
    model = tiny_model()
    trees = [
        (
            tuple(stream.randrange(64) for _ in range(prompt)),
            [tuple(stream.randrange(64) for _ in range(n)) for n in completions],
        )
        for prompt, completions in shapes
    ]
    forest = plant(trees)
    assert forest.tokens == sum(size(t) for t in trees)
    got = forest.per_completion(forest.logprobs(model).logprobs_N)
    want = torch.stack([by_itself(model, p, c) for p, cs in trees for c in cs])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    parameters = list(model.parameters())
    mine = torch.autograd.grad(got.sum(), parameters)
    for a, b in zip(mine, torch.autograd.grad(want.sum(), parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_pivots_cost_their_prompt_alone() -> None:
    assert size(((1, 2, 3), [(4,), (5,)])) == 3


def test_loss_by_hand() -> None:
    policy = torch.tensor([-2.0, -5.0, -1.0, -0.5])
    reference = torch.tensor([-3.0, -4.0, -1.0, -1.5])
    lengths = torch.tensor([4, 2, 1, 1])

    def by_hand(margins: list[float], smoothing: float = 0.0) -> float:
        def nls(x: float) -> float:
            return math.log1p(math.exp(-x))

        return sum((1 - smoothing) * nls(m) + smoothing * nls(-m) for m in margins)

    loss, metrics = dpo_loss(policy, reference, lengths, DpoLoss(beta=0.5))
    assert float(loss) == pytest.approx(by_hand([1.0, -0.5]))
    assert float(metrics["accuracy"]) == 1
    assert float(metrics["margin"]) == pytest.approx(0.5)
    loss, _ = dpo_loss(policy, reference, lengths, DpoLoss(beta=0.5, label_smoothing=0.1))
    assert float(loss) == pytest.approx(by_hand([1.0, -0.5], 0.1))
    loss, _ = dpo_loss(policy, reference, lengths, DpoLoss(beta=0.5, length_normalised=True))
    assert float(loss) == pytest.approx(by_hand([0.5 * (1 / 4 + 1 / 2), -0.5]))
    loss, _ = dpo_loss(policy, reference, lengths, DpoLoss(beta=0.5, anchor=2.0))
    assert float(loss) == pytest.approx(by_hand([1.0, -0.5]) + 2 * (2 / 4 + 1))


def test_gradient_is_the_closed_form() -> None:
    """d loss / d policy = -beta sigma(-margin) for chosen, its negative for rejected."""
    policy = torch.tensor([-2.0, -5.0], requires_grad=True)
    reference = torch.tensor([-3.0, -4.0])
    loss, _ = dpo_loss(policy, reference, torch.tensor([1, 1]), DpoLoss(beta=0.3))
    (grad,) = torch.autograd.grad(loss, policy)
    expected = -0.3 / (1 + math.exp(0.3 * 2))
    assert grad.tolist() == pytest.approx([expected, -expected])


def test_an_untrained_policy_is_its_reference(model: Decoder) -> None:
    chosen = pairs(10, 5)
    objective = Dpo(chosen, reference_logprobs(model, chosen, 50, "f32"), DpoLoss(), 10, 60, 0)
    batch = objective.draw(0)
    total = sum(float(objective.loss(model, m).total.detach()) for m in batch.micros)
    assert total / batch.weight == pytest.approx(math.log(2), abs=1e-5)


def test_every_pair_once_per_epoch(model: Decoder) -> None:
    chosen = pairs(10, 3)
    objective = Dpo(chosen, torch.zeros(10, 2), DpoLoss(), 4, 1000, 0)
    first = [objective._at(i) for i in range(10)]
    second = [objective._at(i) for i in range(10, 20)]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_the_reference_is_computed_once(tmp_path, model: Decoder, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    chosen = pairs(6, 3)
    checkpoint.save(model, tmp_path / "model")
    weights = [tmp_path / "model" / "model.safetensors"]
    first = stored_reference(tmp_path, weights, model, chosen, 50, "f32")
    monkeypatch.setattr("phikit.train.objectives.dpo.reference_logprobs", None)
    assert torch.equal(stored_reference(tmp_path, weights, model, chosen, 50, "f32"), first)
    with pytest.raises(TypeError):  # other pairs: it must be computed
        stored_reference(tmp_path, weights, model, chosen[:5], 50, "f32")


def test_groups() -> None:
    assert groups([3, 3, 5, 9, 1], 6) == [[0, 1], [2], [3], [4]]
    assert groups([], 6) == []


def kinds(counts: dict[str, int]) -> list[Pair]:
    evidence = {"judge": {"declined": False}, "about-unknown": {"declined": True},
                "pivot-unknown": {"verifier": "refusal"}}  # fmt: skip
    names = {"about-unknown": "judge", "pivot-unknown": "pivot"}
    return [
        Pair(prompt_ids=(i,), chosen_ids=(1,), rejected_ids=(2,), kind=names.get(name, name),
             evidence=evidence.get(name, {}))
        for name, n in counts.items() for i in range(n)
    ]  # fmt: skip


def test_kinds_are_mixed_in_exact_shares() -> None:
    pairs = kinds({"judge": 90, "pivot": 100, "refusal": 20, "about-unknown": 10,
                   "pivot-unknown": 10})  # fmt: skip
    mixed = mix(pairs, {"refusal": 0.05}, seed=1)
    assert mixed.counts == {"judge": 90, "pivot": 100, "refusal": 10}  # 10 of 200
    assert mixed.unused == {"refusal": 30}
    assert mixed.pairs == mix(pairs, {"refusal": 0.05}, seed=1).pairs
    assert mixed.pairs != mix(pairs, {"refusal": 0.05}, seed=2).pairs
    assert [p for p in pairs if p in mixed.pairs] == mixed.pairs  # in the order they were given
    half = mix(pairs, {"refusal": 0.05, "pivot": 0.05}, seed=1)
    assert half.counts == {"judge": 90, "pivot": 5, "refusal": 5}


def test_too_few_of_a_kind_are_said_not_invented() -> None:
    few = kinds({"judge": 95, "refusal": 1})
    assert mix(few, {"refusal": 0.05}, seed=0).counts == {"judge": 95, "refusal": 1}
    assert mix(few, {"pivot": 0.05}, seed=0).counts == {"judge": 95, "refusal": 1, "pivot": 0}
    assert mix(few, {}, seed=0).pairs == few
    with pytest.raises(PhikitError, match="leaves nothing"):
        mix(few, {"judge": 0.6, "refusal": 0.4}, seed=0)
