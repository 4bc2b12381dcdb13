"""Attention confined to documents: equal to a mask, and nothing leaks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from train_fixtures import tiny_model

from phikit.train.attention import confined


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
