"""The scan against the recurrence taken step by step in float64, and its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from phikit.models.flash import kernels
from phikit.models.flash.scan import scan_step, selective_scan


def sequential(args: list[Tensor], fresh: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    x, delta, a, b, c, d, bias, h = args
    outs = []
    for t in range(x.shape[1]):
        dt = torch.log1p(torch.exp(-(delta[:, t] + bias).abs())) + (delta[:, t] + bias).clamp(min=0)
        dt = dt * valid[:, t, None]
        h = h * (~fresh[:, t])[:, None, None]
        h = torch.exp(dt[:, None] * a) * h + b[:, t, :, None] * (dt * x[:, t])[:, None]
        outs.append((c[:, t, :, None] * h).sum(1) + d * x[:, t])
    return torch.stack(outs, 1), h


def made(
    rows: int, length: int, channels: int, states: int, seed: int, shift: float = 0.0
) -> list[Tensor]:
    """Arguments in float64; `shift` moves the time steps: softplus(±30) is about 30 or 1e-13."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64)

    return [
        normal(rows, length, channels), normal(rows, length, channels) + shift,
        -torch.rand((states, channels), generator=g, dtype=torch.float64) * 16 - 0.1,
        normal(rows, length, states), normal(rows, length, states), normal(channels),
        normal(channels), normal(rows, states, channels),
    ]  # fmt: skip


def borders(rows: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand((rows, length), generator=g) < 0.1, torch.rand(
        (rows, length), generator=g
    ) < 0.8


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 70),
    stretches=st.integers(1, 9),
    seed=st.integers(0, 1000),
    shift=st.sampled_from([-30.0, 0.0, 30.0]),
)
def test_any_length_and_cut_gives_the_recurrence_and_its_gradients(
    rows: int, length: int, stretches: int, seed: int, shift: float
) -> None:
    args = [t.requires_grad_() for t in made(rows, length, 3, 2, seed, shift)]
    fresh, valid = borders(rows, length, seed)
    found = selective_scan(*args, fresh, valid, stretches=min(stretches, length))
    right = sequential(args, fresh, valid)
    g = torch.Generator().manual_seed(seed)
    pulls = [torch.randn(t.shape, generator=g, dtype=torch.float64) for t in right]
    for out, wanted in zip(found, right, strict=True):
        torch.testing.assert_close(out, wanted, rtol=1e-9, atol=1e-9)
    ours, theirs = (
        torch.autograd.grad([(o * p).sum() for o, p in zip(outs, pulls, strict=True)], args)
        for outs in (found, right)
    )
    names = ("x", "delta", "a", "b", "c", "d", "bias", "state")
    for name, mine, wanted in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-8, atol=1e-8, msg=name)


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 200),
    seed=st.integers(0, 1000),
    shift=st.sampled_from([-1000.0, -30.0, 0.0, 30.0, 1000.0]),
)
def test_float32_stays_finite_and_right_whatever_the_time_steps(
    length: int, seed: int, shift: float
) -> None:
    args = made(2, length, 3, 2, seed, shift)
    narrow = [t.float().requires_grad_() for t in args]
    fresh, valid = borders(2, length, seed)
    y, end = selective_scan(*narrow, fresh, valid)
    right, right_end = sequential(args, fresh, valid)
    for out, wanted in ((y, right), (end, right_end)):
        # each state is a sum of decayed inflows: errors are relative to the largest of them
        assert (out - wanted).abs().max() <= 1e-5 * (1 + wanted.abs().max())
    for gradient in torch.autograd.grad(y.sum() + end.sum(), narrow):
        assert gradient.isfinite().all()


def test_bfloat16_inputs_lose_only_the_rounding_of_inputs_and_outputs() -> None:
    args = made(2, 300, 8, 4, 0)
    rounded = [t.bfloat16() for t in args]
    fresh, valid = torch.zeros(2, 300, dtype=torch.bool), torch.ones(2, 300, dtype=torch.bool)
    y, end = selective_scan(*rounded)
    assert y.dtype == torch.bfloat16 and end.dtype == torch.float32
    right, right_end = sequential([t.double() for t in rounded], fresh, valid)
    assert ((y.double() - right).abs() <= right.abs() * 2**-8 + 1e-5).all()
    torch.testing.assert_close(end.double(), right_end, rtol=1e-5, atol=1e-5)


def test_steps_are_the_scan_of_one_position() -> None:
    args = made(3, 12, 5, 4, 1)
    x, delta, a, b, c, d, bias, state = args
    right, end = selective_scan(*args)
    for t in range(12):
        y = scan_step(x[:, t], delta[:, t], a, b[:, t], c[:, t], d, bias, state)
        torch.testing.assert_close(y, right[:, t], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(state, end, rtol=1e-10, atol=1e-10)


def test_what_is_saved_for_the_backward_pass_is_a_fraction_of_the_states() -> None:
    args = [t.float().requires_grad_() for t in made(1, 512, 64, 16, 0)]
    held = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal held
        held += tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
        y, _ = selective_scan(*args, stretches=1)
    assert y.requires_grad
    inputs = sum(t.numel() for t in args)
    assert held <= inputs + 512 * 64 * 16 / 16  # one state in sixteen


def test_the_kernel_is_called_as_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with mamba-ssm's signature and its order of dimensions; no GPU is at hand."""
    args = [t.float() for t in made(2, 9, 4, 3, 2)]

    def documented(u, delta, A, B, C, D=None, z=None, delta_bias=None,  # type: ignore[no-untyped-def]
                   delta_softplus=False, return_last_state=False):  # fmt: skip
        assert z is None and delta_softplus and return_last_state
        assert u.shape == delta.shape == (2, 4, 9) and A.shape == (4, 3)
        assert B.shape == C.shape == (2, 3, 9) and D.shape == delta_bias.shape == (4,)
        h, outs = torch.zeros(2, 4, 3), []
        for t in range(9):
            dt = torch.nn.functional.softplus(delta[:, :, t] + delta_bias)
            h = torch.exp(dt[..., None] * A) * h + (dt * u[:, :, t])[..., None] * B[:, None, :, t]
            outs.append((h * C[:, None, :, t]).sum(-1) + D * u[:, :, t])
        return torch.stack(outs, -1), h

    monkeypatch.setattr(kernels, "kernel", lambda module, name: documented)
    found = kernels.fused_scan(*args[:7])
    assert found is not None
    for out, wanted in zip(found, selective_scan(*args[:7]), strict=True):
        torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


def test_without_the_packages_nothing_is_fused() -> None:
    assert kernels.kernel("no_such_package", "anything") is None
