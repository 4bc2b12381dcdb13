"""Attention confined to each document of packed rows.

Shapes: B rows, L sequence, T = B·L tokens, S documents of one bucket, P their padded length,
H query heads, G key-value heads, M = H + 2G heads of the fused projection, K head size, Q queries
of one block, U what the block sees.

A token pays for its own document's length and not for its row's: nothing can leak, there is no mask
to apply, and packing costs no attention.

In bfloat16 on a CPU that has products in it, the C kernels of `native` read documents where they
are. Everywhere else documents are taken out of their rows and put into buckets of about equal
length. Within a bucket `models.attention` does the work, a block of queries at a time; on a CPU
that is up to twice as fast as torch's fused kernels, whose backward pass is slow, above all with a
mask.

Queries and keys are rotated on their way into the buckets and their gradients on the way back, so
all that is kept for the backward pass is the fused projection itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from phikit.models.attention import QUERY_BLOCK, blockwise, blockwise_backward
from phikit.train.native.attention import NativeAttention, Places, runs

Rope = tuple[Tensor, Tensor]  # cosines and sines


@dataclass(frozen=True)
class Bucket:
    """Documents of about equal length.

    Attributes:
        shape: documents S and padded length P.
        tokens: where in [T] the documents' tokens are; None: all of them, in order, unpadded.
        places: where in [S · P] they go, in the same order.
        branches_SP: the branch of each position, if any document has branches.
    """

    shape: tuple[int, int]
    tokens: Tensor | None
    places: Tensor | None
    branches_SP: Tensor | None

    def take(self, x_TC: Tensor) -> Tensor:
        """The bucket's documents [S, P, C], zeros where they are shorter."""
        s, p = self.shape
        if self.tokens is None or self.places is None:
            return x_TC.view(s, p, -1)
        out = x_TC.new_zeros(s * p, x_TC.shape[1])
        out.index_copy_(0, self.places, x_TC.index_select(0, self.tokens))
        return out.view(s, p, -1)

    def hide(self, scores_SHQU: Tensor, start: int, end: int) -> None:
        """Hides from queries start ... end - 1 what is of another branch than they."""
        if self.branches_SP is not None:
            mine = self.branches_SP[:, None, start:end, None]
            theirs = self.branches_SP[:, None, None, :end]
            scores_SHQU.masked_fill_((mine != theirs) & (theirs != 0), float("-inf"))

    def put(self, x_SPC: Tensor, out_TC: Tensor) -> None:
        """The way back: every real position to its token."""
        flat = x_SPC.view(-1, x_SPC.shape[-1])
        if self.tokens is None or self.places is None:
            out_TC.copy_(flat)
        else:
            out_TC.index_copy_(0, self.tokens, flat.index_select(0, self.places))


@dataclass(frozen=True)
class Documents:
    """Where the documents of packed rows are.

    Attributes:
        starts_S, lengths_S: in the rows laid end to end.
        branches_T: the branch of each token, if any document has branches.
        tokens: T, padding included.
    """

    starts_S: Tensor
    lengths_S: Tensor
    branches_T: Tensor | None
    tokens: int


class Confined:
    """What each position attends to: itself and the earlier positions of its own document.

    It is an `Attend`; training calls `fused`, which is the same on the projection as it comes.
    """

    def __init__(self, documents: Documents) -> None:
        self.documents = documents
        self._rope: Rope | None = None
        self._turns: list[Rope | None] = []
        self._turned: Places | None = None

    @cached_property
    def buckets(self) -> list[Bucket]:
        return _buckets(self.documents)

    @cached_property
    def _places(self) -> Places:
        d = self.documents
        branches = None if d.branches_T is None else d.branches_T.int().contiguous()
        return Places(d.starts_S.int(), d.lengths_S.int(), branches, None, d.tokens)

    def __call__(self, _: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        heads, kv_heads = q_BHLK.shape[1], k_BGLK.shape[1]
        qkv_BLMK = torch.cat((q_BHLK, k_BGLK, v_BGLK), dim=1).transpose(1, 2)
        if runs(qkv_BLMK):
            out = NativeAttention.apply(qkv_BLMK, self._places, heads, kv_heads)
        else:
            none: list[Rope | None] = [None] * len(self.buckets)
            out = _Attention.apply(qkv_BLMK, self.buckets, none, heads, kv_heads)
        return out.transpose(1, 2)

    def fused(self, qkv_BLMK: Tensor, rope: Rope, heads: int, kv_heads: int) -> Tensor:
        """Attention over a fused projection that is not rotated yet; returns [B, L, H, K]."""
        if self._rope is None or self._rope[0] is not rope[0]:
            self._rope, self._turned, self._turns = rope, None, []
        if runs(qkv_BLMK):
            if self._turned is None:
                turns = _tables(rope, *qkv_BLMK.shape[:2])
                self._turned = replace(self._places, turns=turns)
            return NativeAttention.apply(qkv_BLMK, self._turned, heads, kv_heads)
        if not self._turns:
            self._turns = [_turns(bucket, rope, qkv_BLMK) for bucket in self.buckets]
        return _Attention.apply(qkv_BLMK, self.buckets, self._turns, heads, kv_heads)


def confined(segments_BL: Tensor, branches_BL: Tensor | None = None) -> Confined:
    """Attention that keeps to each document of the rows.

    Args:
        segments_BL: the number of each position's document in its row; documents are contiguous.
        branches_BL: for a prompt with several continuations in one row: 0 for the prompt, which
            all of its document see; 1, 2, ... for the continuations, which see not each other.

    Padding (segment 0) attends to nothing and comes out as zeros.
    """
    segments = segments_BL.reshape(-1)
    rows = torch.arange(len(segments), device=segments.device) // segments_BL.shape[1]
    new = torch.ones_like(segments, dtype=torch.bool)
    new[1:] = (segments[1:] != segments[:-1]) | (rows[1:] != rows[:-1])
    starts = new.nonzero().squeeze(1)
    lengths = torch.diff(starts, append=starts.new_tensor([len(segments)]))
    real = segments[starts] != 0
    branches = None if branches_BL is None else branches_BL.reshape(-1)
    return Confined(Documents(starts[real], lengths[real], branches, len(segments)))


def _buckets(documents: Documents) -> list[Bucket]:
    starts, lengths, branches_T = documents.starts_S, documents.lengths_S, documents.branches_T
    widths = torch.where(lengths <= QUERY_BLOCK, _up(lengths, 16), _up(lengths, 64))
    buckets = []
    for width in widths.unique().tolist():
        chosen = widths == width
        first_S, length_S = starts[chosen], lengths[chosen]
        offset_P = torch.arange(width, device=starts.device)
        inside_SP = offset_P < length_S[:, None]
        tokens: Tensor | None = (first_S[:, None] + offset_P)[inside_SP]
        places: Tensor | None = inside_SP.reshape(-1).nonzero().squeeze(1)
        branches = None
        if branches_T is not None:
            branches = torch.zeros_like(inside_SP, dtype=branches_T.dtype)
            branches[inside_SP] = branches_T[tokens]
        if len(first_S) * width == documents.tokens and bool((length_S == width).all()):
            tokens = places = None
        buckets.append(Bucket((len(first_S), width), tokens, places, branches))
    return buckets


def _tables(rope: Rope, rows: int, length: int) -> Rope:
    """Cosines and sines of every token, float32 [T, R / 2]."""
    half = rope[0].shape[-1] // 2
    cos, sin = (
        table[..., :half].expand(rows, length, half).reshape(-1, half).float().contiguous()
        for table in rope
    )
    return cos, sin


def _up(lengths: Tensor, multiple: int) -> Tensor:
    return (lengths + multiple - 1) // multiple * multiple


def _turns(bucket: Bucket, rope: Rope, like_BLMK: Tensor) -> Rope:
    """The bucket's halves of the tables, each [S, P, 1, R / 2], in the projection's precision."""
    half = rope[0].shape[-1] // 2
    b, n = like_BLMK.shape[:2]
    taken = (
        bucket.take(table[..., :half].to(like_BLMK.dtype).expand(b, n, half).reshape(b * n, half))
        for table in rope
    )
    cos, sin = (t.view(*bucket.shape, 1, half) for t in taken)
    return cos, sin


def _turn(x_SPMK: Tensor, turns: Rope | None, out_SPMK: Tensor, back: bool = False) -> None:
    """Rotates the first R dimensions of every head, or back, from one layout into another."""
    if turns is None:
        out_SPMK.copy_(x_SPMK)
        return
    cos, sin = turns
    half = cos.shape[-1]
    first, second = x_SPMK[..., :half], x_SPMK[..., half : 2 * half]
    sign = -1.0 if back else 1.0
    out = out_SPMK[..., :half]
    torch.mul(first, cos, out=out)
    out.addcmul_(second, sin, value=-sign)
    out = out_SPMK[..., half : 2 * half]
    torch.mul(second, cos, out=out)
    out.addcmul_(first, sin, value=sign)
    if 2 * half < x_SPMK.shape[-1]:
        out_SPMK[..., 2 * half :] = x_SPMK[..., 2 * half :]


def _heads(
    qkv_TC: Tensor, bucket: Bucket, turns: Rope | None, heads: int, kv_heads: int, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled and rotated queries, rotated keys, values: [S, H or G, P, K], contiguous."""
    s, p = bucket.shape
    x = bucket.take(qkv_TC).view(s, p, heads + 2 * kv_heads, k)
    parts = x.split((heads, kv_heads, kv_heads), dim=2)
    q, keys, values = (x.new_empty(s, part.shape[2], p, k) for part in parts)
    _turn(parts[0], turns, q.transpose(1, 2))
    _turn(parts[1], turns, keys.transpose(1, 2))
    values.copy_(parts[2].transpose(1, 2))
    return q.mul_(k**-0.5), keys, values


class _Attention(Function):
    """Probabilities are made again in the backward pass: memory grows with L, not L²."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv_BLMK: Tensor,
        buckets: list[Bucket],
        turns: list[Rope | None],
        heads: int,
        kv_heads: int,
    ) -> Tensor:
        b, n, m, k = qkv_BLMK.shape
        qkv_TC = qkv_BLMK.reshape(b * n, m * k)
        out_TC = qkv_TC.new_zeros(b * n, heads * k)
        for bucket, turn in zip(buckets, turns, strict=True):
            q, keys, values = _heads(qkv_TC, bucket, turn, heads, kv_heads, k)
            result_SPHK = blockwise(q, keys, values, bucket.hide)
            bucket.put(result_SPHK.flatten(2), out_TC)
        ctx.save_for_backward(qkv_TC)
        ctx.rest = buckets, turns, heads, kv_heads, qkv_BLMK.shape
        return out_TC.view(b, n, heads, k)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (qkv_TC,) = ctx.saved_tensors
        buckets, turns, heads, kv_heads, shape = ctx.rest
        k = shape[-1]
        grad_TC = grads[0].reshape(len(qkv_TC), heads * k)
        out_TC = torch.zeros_like(qkv_TC)
        for bucket, turn in zip(buckets, turns, strict=True):
            q, keys, values = _heads(qkv_TC, bucket, turn, heads, kv_heads, k)
            s, p = bucket.shape
            grad = bucket.take(grad_TC).view(s, p, heads, k).transpose(1, 2)
            dq, dk, dv = blockwise_backward(q, keys, values, grad, bucket.hide)
            d_SPMK = qkv_TC.new_empty(s, p, heads + 2 * kv_heads, k)
            parts = d_SPMK.split((heads, kv_heads, kv_heads), dim=2)
            _turn(dq.mul_(k**-0.5).transpose(1, 2), turn, parts[0], back=True)
            _turn(dk.transpose(1, 2), turn, parts[1], back=True)
            parts[2].copy_(dv.transpose(1, 2))
            bucket.put(d_SPMK.view(s, p, -1), out_TC)
        return out_TC.view(shape), None, None, None, None
