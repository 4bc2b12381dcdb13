"""Chunked losses equal the plain ones, gradients included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.train import logits, losses
from phikit.train.gradients import added_up
from phikit.train.held import weights_held


def data(n: int, d: int, v: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=g, requires_grad=True)
    head = torch.randn(v, d, generator=g).mul_(0.3).requires_grad_()
    return hidden, head, torch.randint(v, (n,), generator=g)


def plain(hidden, head, targets, smoothing, z, temperature):  # type: ignore[no-untyped-def]
    logits = hidden @ head.T / temperature
    loss = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    return loss + z * logits.logsumexp(1).square().sum()


def small_chunks(patch: pytest.MonkeyPatch) -> None:
    """Chunks of 32 tokens, computed 16 rows at a time."""
    patch.setattr(logits, "CACHE_BYTES", 1)
    patch.setattr(losses, "CHUNK_ROWS", 32)


@settings(max_examples=25)
@given(
    n=st.integers(1, 70),
    smoothing=st.sampled_from([0.0, 0.1]),
    z=st.sampled_from([0.0, 1e-2]),
    temperature=st.sampled_from([1.0, 0.7]),
    seed=st.integers(0, 5),
)
def test_cross_entropy(n: int, smoothing: float, z: float, temperature: float, seed: int) -> None:
    hidden, head, targets = data(n, 12, 40, seed)
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        got = losses.cross_entropy(hidden, head, targets, smoothing, z, temperature)
    got_grads = torch.autograd.grad(got.loss / n, (hidden, head))
    want = plain(hidden, head, targets, smoothing, z, temperature)
    want_grads = torch.autograd.grad(want / n, (hidden, head))
    torch.testing.assert_close(got.loss / n, want / n, rtol=1e-6, atol=1e-6)
    nll = F.cross_entropy(hidden @ head.T / temperature, targets, reduction="sum")
    torch.testing.assert_close(got.nll, nll.detach(), rtol=1e-5, atol=1e-6)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@settings(max_examples=25)
@given(n=st.integers(1, 70), temperature=st.sampled_from([1.0, 0.6, 1.3]), seed=st.integers(0, 5))
def test_token_logprobs(n: int, temperature: float, seed: int) -> None:
    hidden, head, targets = data(n, 12, 40, seed)
    up = torch.randn(2, n, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        got = losses.token_logprobs(hidden, head, targets, temperature)
        total = (got.logprobs_N * up[0] + got.entropy_N * up[1]).sum()
        got_grads = torch.autograd.grad(total, (hidden, head))
    logp = torch.log_softmax(hidden @ head.T / temperature, dim=1)
    want = logp.gather(1, targets[:, None]).squeeze(1)
    entropy = -(logp.exp() * logp).sum(1)
    want_grads = torch.autograd.grad((want * up[0] + entropy * up[1]).sum(), (hidden, head))
    torch.testing.assert_close(got.logprobs_N, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.entropy_N, entropy, rtol=1e-5, atol=2e-6)
    for a, b in zip(got_grads, want_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=3e-6)


def test_extreme_logits_stay_finite() -> None:
    hidden, head, targets = data(20, 12, 40, 0)
    hidden = (hidden.detach() * 1e3).requires_grad_()
    got = losses.token_logprobs(hidden, head, targets)
    (got.logprobs_N.sum() + got.entropy_N.sum()).backward()
    assert torch.isfinite(got.logprobs_N).all() and torch.isfinite(got.entropy_N).all()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()


def test_only_trained_rows_reach_the_head() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    targets = torch.tensor([[5, -100, 6], [-100, -100, 7]])
    rows, kept = losses.trained_rows(hidden, targets)
    assert kept.tolist() == [5, 6, 7]
    assert rows.tolist() == [[0, 1], [4, 5], [10, 11]]
    none, _ = losses.trained_rows(hidden, torch.full((2, 3), -100))
    assert float(losses.cross_entropy(none, torch.ones(4, 2), torch.empty(0).long()).loss) == 0.0


def test_a_held_head_is_the_same_and_a_changed_one_is_seen() -> None:
    hidden, head, targets = data(20, 16, 64, 0)
    head = torch.nn.Parameter(head.detach())

    def logprobs(weights: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return losses.token_logprobs(hidden, weights, targets).logprobs_N

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(logprobs(head).sum(), head)[0]

    before, slope = logprobs(head).detach(), gradient()
    with weights_held():
        for _ in range(2):
            assert torch.equal(logprobs(head), before) and torch.equal(gradient(), slope)
        other = torch.nn.Parameter(head.detach() * 1.5)
        assert not torch.equal(logprobs(other), before)
        with torch.no_grad():
            head.mul_(1.5)
        assert torch.equal(logprobs(head), logprobs(other))
    after = logprobs(head).detach()
    head.grad = gradient()
    torch.optim.AdamW([head], lr=0.1, fused=True).step()
    assert (logprobs(head) - after).abs().max() > 0.01
    with weights_held():
        assert torch.equal(logprobs(head), logprobs(head.detach().clone()))


def test_in_place_a_head_without_any_token_has_no_gradient() -> None:
    head = torch.nn.Parameter(torch.ones(64, 16))
    none = torch.zeros(0, dtype=torch.long)
    with added_up(1.0, in_place=True):
        losses.token_logprobs(torch.ones(0, 16), head, none).logprobs_N.sum().backward()
        assert torch.equal(head.grad, torch.zeros(64, 16))
        losses.token_logprobs(torch.ones(3, 16), head, none.new_ones(3)).logprobs_N.sum().backward()
        before = head.grad.clone()
        losses.token_logprobs(torch.ones(0, 16), head, none).logprobs_N.sum().backward()
    assert before.any() and torch.equal(head.grad, before)
