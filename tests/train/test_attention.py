"""Attention confined to documents: equal to a mask, and nothing leaks."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from train_fixtures import tiny_model

from phikit.compiled import Compiler
from phikit.train.attention import confined
from phikit.train.native import attention
from phikit.train.native.attention import runs
from phikit.train.native.build import library


def rows_of(lengths: list[list[int]], width: int) -> torch.Tensor:
    segments = torch.zeros(len(lengths), width, dtype=torch.int32)
    for b, row in enumerate(lengths):
        start = 0
        for number, n in enumerate(row, 1):
            segments[b, start : start + n] = number
            start += n
    return segments


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(1, 150), min_size=1, max_size=3), min_size=1, max_size=3))
def test_equals_masked_attention(lengths: list[list[int]]) -> None:
    width = max(sum(row) for row in lengths) + 5
    segments = rows_of(lengths, width)
    g = torch.Generator().manual_seed(0)
    b = len(lengths)
    q, k, v = (torch.randn(b, h, width, 8, generator=g, requires_grad=True) for h in (4, 2, 2))
    real = (segments != 0)[:, None, :, None]
    up = torch.randn(b, 4, width, 8, generator=g) * real
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(
        width, width, dtype=torch.bool
    ).tril()
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    got = confined(segments)(0, q, k, v)
    torch.testing.assert_close(got, want * real, rtol=1e-5, atol=2e-6)
    for a, c in zip(
        torch.autograd.grad(got, (q, k, v), up), torch.autograd.grad(want, (q, k, v), up),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a, c, rtol=1e-4, atol=5e-6)


def test_a_neighbour_changes_nothing() -> None:
    model = tiny_model()
    segments = rows_of([[10, 20, 25], [55]], 64)
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 64, (2, 64), generator=g)
    other = ids.clone()
    other[0, 10:30] = torch.randint(2, 64, (20,), generator=g)  # the second document, and padding
    other[1, 55:] = 7
    attend = confined(segments)
    with torch.no_grad():
        a, b = model.hidden(ids, attend=attend), model.hidden(other, attend=attend)
    assert not torch.equal(a[0, 10:30], b[0, 10:30])
    assert torch.equal(a[0, :10], b[0, :10])
    assert torch.equal(a[0, 30:55], b[0, 30:55])
    assert torch.equal(a[1, :55], b[1, :55])


def test_a_packed_document_equals_itself_alone() -> None:
    model = tiny_model()
    segments = rows_of([[10, 20]], 32)
    ids = torch.randint(2, 64, (1, 32), generator=torch.Generator().manual_seed(0))
    positions = torch.cat((torch.arange(10), torch.arange(22)))[None]
    with torch.no_grad():
        packed = model.hidden(ids, positions, attend=confined(segments))
        alone = model.hidden(ids[:, 10:30])
    torch.testing.assert_close(packed[0, 10:30], alone[0], rtol=1e-5, atol=1e-5)


# --- the C kernels -------------------------------------------------------------------------------

needs_kernels = pytest.mark.skipif(
    not runs(torch.zeros(1, 1, 3, 32, dtype=torch.bfloat16)),
    reason="needs a C compiler and a processor with products in bfloat16",
)


def rope_of(tokens: int, rotary: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = torch.arange(tokens)[:, None] * 100.0 ** -(torch.arange(0, rotary, 2) / rotary)
    twice = torch.cat((angles, angles), dim=-1)[None]
    return twice.cos(), twice.sin()


def both_ways(
    qkv: torch.Tensor, up: torch.Tensor, segments: torch.Tensor, branches: torch.Tensor | None,
    rotary: int, heads: int, kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    qkv = qkv.clone().requires_grad_()
    attend = confined(segments, branches)
    out = attend.fused(qkv, rope_of(segments.shape[1], rotary), heads, kv_heads)
    (grad,) = torch.autograd.grad(out, qkv, up.to(out.dtype))
    return out.detach().double(), grad.double()


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.lists(st.integers(1, 150), max_size=3), min_size=1, max_size=2),
    heads=st.sampled_from([(1, 1), (6, 2), (3, 3)]),
    k=st.sampled_from([32, 64, 96]),
    whole=st.booleans(),
    branched=st.booleans(),
    tiles=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_kernels_against_float64(
    lengths: list[list[int]],
    heads: tuple[int, int],
    k: int,
    whole: bool,
    branched: bool,
    tiles: bool,
    seed: int,
) -> None:
    """Outputs and gradients, as near as rounding their bfloat16 inputs and results allows."""
    h, g = heads
    segments = rows_of(lengths, max(max(map(sum, lengths)) + 3 * (not whole), 1))
    stream = torch.Generator().manual_seed(seed)
    b, n = segments.shape
    qkv = torch.randn(b, n, h + 2 * g, k, generator=stream).bfloat16()
    up = torch.randn(b, n, h, k, generator=stream).bfloat16()
    branches = torch.randint(0, 3, (b, n), generator=stream) if branched else None
    rotary = k if seed % 2 else k // 2
    with patch.object(attention, "library", lambda: library(Compiler(tiles=tiles))):
        got = both_ways(qkv, up, segments, branches, rotary, h, g)
    want = both_ways(qkv.double(), up, segments, branches, rotary, h, g)
    for a, c in zip(got, want, strict=True):
        assert (a - c).norm() <= 5e-3 * c.norm()
        assert not a[segments == 0].any()


@needs_kernels
def test_the_kernels_do_not_depend_on_threads_nor_on_neighbours() -> None:
    segments = rows_of([[40, 33, 100], [7, 130, 20]], 180)
    stream = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 180, 10, 64, generator=stream).bfloat16()
    up = torch.randn(2, 180, 6, 64, generator=stream).bfloat16()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(both_ways(qkv, up, segments, None, 64, 6, 2))
    finally:
        torch.set_num_threads(before)
    for out, grad in found[1:]:
        assert torch.equal(out, found[0][0]) and torch.equal(grad, found[0][1])
    qkv[segments == 2] = float("nan")  # which is seen where it is, and nowhere else
    out, grad = both_ways(qkv, up, segments, None, 64, 6, 2)
    for a, c in zip((out, grad), found[0], strict=True):
        assert a[segments == 2].isnan().all()
        assert torch.equal(a[segments != 2], c[segments != 2])


def test_a_processor_without_bfloat16_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    library.cache_clear()
    try:
        for _ in range(2):
            kernels = library(Compiler(portable=True))
        assert kernels is not None and not kernels.phikit_confined_runs()
        assert sum("bfloat16 vectors" in r.message for r in caplog.records) == 1
    finally:
        library.cache_clear()


def test_without_the_kernels_it_is_torch_s(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    """No compiler: said once, and the same result to rounding."""
    missing = Compiler(program="there-is-no-such-compiler")
    segments = rows_of([[50, 14]], 64)
    stream = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, 64, 5, 32, generator=stream).bfloat16()
    up = torch.randn(1, 64, 3, 32, generator=stream).bfloat16()
    with_them = both_ways(qkv, up, segments, None, 32, 3, 1)
    library.cache_clear()
    monkeypatch.setattr(attention, "library", lambda: library(missing))
    without = both_ways(qkv, up, segments, None, 32, 3, 1)
    for a, c in zip(with_them, without, strict=True):
        assert (a - c).norm() < 1e-2 * c.norm()
    assert caplog.text.count("there is no C compiler 'there-is-no-such-compiler'") == 1
