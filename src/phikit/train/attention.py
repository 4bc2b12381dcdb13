"""Attention confined to each document of packed rows.

Shapes: B rows, L sequence, T = B·L tokens, S documents of one bucket, P their padded length,
H query heads, G key-value heads, R = H / G, K head size, Q queries of one block.

Documents are taken out of their rows and put into buckets of about equal length, so a token pays
for its own document's length and not for its row's: nothing can leak, there is no mask to apply,
and packing costs no attention. Within a bucket plain batched products do the work, a block of
queries at a time; on a CPU that is up to twice as fast as torch's fused kernels, whose backward
pass is slow, above all with a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from phikit.models.decoder import Attend

QUERY_BLOCK = 128


@dataclass(frozen=True)
class Bucket:
    """Documents of about equal length.

    Attributes:
        shape: documents S and padded length P.
        tokens: where in [T] the documents' tokens are.
        places: where in [S · P] they go, in the same order.
        branches_SP: the branch of each position, if any document has branches.
    """

    shape: tuple[int, int]
    tokens: Tensor
    places: Tensor
    branches_SP: Tensor | None


def confined(segments_BL: Tensor, branches_BL: Tensor | None = None) -> Attend:
    """What each position attends to: itself and the earlier positions of its own document.

    Args:
        segments_BL: the number of each position's document in its row; documents are contiguous.
        branches_BL: for a prompt with several continuations in one row: 0 for the prompt, which
            all of its document see; 1, 2, ... for the continuations, which see not each other.

    Padding (segment 0) attends to nothing and comes out as zeros.
    """
    buckets = _buckets(segments_BL, branches_BL)

    def attend(_: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        return _Attention.apply(q_BHLK, k_BGLK, v_BGLK, buckets)

    return attend


def _buckets(segments_BL: Tensor, branches_BL: Tensor | None) -> list[Bucket]:
    segments = segments_BL.reshape(-1)
    rows = torch.arange(len(segments), device=segments.device) // segments_BL.shape[1]
    new = torch.ones_like(segments, dtype=torch.bool)
    new[1:] = (segments[1:] != segments[:-1]) | (rows[1:] != rows[:-1])
    starts = new.nonzero().squeeze(1)
    lengths = torch.diff(starts, append=starts.new_tensor([len(segments)]))
    real = segments[starts] != 0
    starts, lengths = starts[real], lengths[real]
    widths = torch.where(lengths <= QUERY_BLOCK, _up(lengths, 16), _up(lengths, 64))
    buckets = []
    for width in widths.unique().tolist():
        chosen = widths == width
        first_S, length_S = starts[chosen], lengths[chosen]
        offset_P = torch.arange(width, device=segments.device)
        inside_SP = offset_P < length_S[:, None]
        tokens = (first_S[:, None] + offset_P)[inside_SP]
        places = inside_SP.reshape(-1).nonzero().squeeze(1)
        branches = None
        if branches_BL is not None:
            branches = torch.zeros_like(inside_SP, dtype=branches_BL.dtype)
            branches[inside_SP] = branches_BL.reshape(-1)[tokens]
        buckets.append(Bucket((len(first_S), width), tokens, places, branches))
    return buckets


def _up(lengths: Tensor, multiple: int) -> Tensor:
    return (lengths + multiple - 1) // multiple * multiple


def _take(x_BHLK: Tensor, bucket: Bucket) -> Tensor:
    """The bucket's documents, [S, H, P, K] and contiguous, zeros where they are shorter."""
    b, h, n, k = x_BHLK.shape
    flat = x_BHLK.transpose(1, 2).reshape(b * n, h * k)
    s, p = bucket.shape
    out = flat.new_zeros(s * p, h * k)
    out.index_copy_(0, bucket.places, flat.index_select(0, bucket.tokens))
    return out.view(s, p, h, k).transpose(1, 2).contiguous()


def _put(x_SHPK: Tensor, bucket: Bucket, out_THK: Tensor) -> None:
    """The way back: every real position to its token."""
    s, h, p, k = x_SHPK.shape
    flat = x_SHPK.transpose(1, 2).reshape(s * p, h, k)
    out_THK.index_copy_(0, bucket.tokens, flat.index_select(0, bucket.places))


def _probabilities(
    q_SHPK: Tensor, k_SGPK: Tensor, start: int, end: int, branches_SP: Tensor | None
) -> tuple[Tensor, Tensor]:
    """For queries start..end: scaled queries [S·G, R·Q, K] and probabilities [S·G, R·Q, end]."""
    s, h, _, k = q_SHPK.shape
    g = k_SGPK.shape[1]
    query = (q_SHPK[:, :, start:end] * k**-0.5).reshape(s * g, (h // g) * (end - start), k)
    keys = k_SGPK[:, :, :end].reshape(s * g, end, k)
    scores = torch.bmm(query, keys.mT).view(s, h, end - start, end)
    later = torch.ones(end - start, end - start, dtype=torch.bool, device=scores.device).triu(1)
    scores[..., start:].masked_fill_(later, float("-inf"))
    if branches_SP is not None:
        mine, theirs = branches_SP[:, None, start:end, None], branches_SP[:, None, None, :end]
        scores.masked_fill_((mine != theirs) & (theirs != 0), float("-inf"))
    return query, scores.softmax(-1).view(s * g, -1, end)


class _Attention(Function):
    """Probabilities are made again in the backward pass: memory grows with L, not L²."""

    @staticmethod
    def forward(
        ctx: Any, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, buckets: list[Bucket]
    ) -> Tensor:
        b, h, n, k = q_BHLK.shape
        out = q_BHLK.new_zeros(b * n, h, k)
        for bucket in buckets:
            q, keys, values = (_take(x, bucket) for x in (q_BHLK, k_BGLK, v_BGLK))
            s, g, p, _ = keys.shape
            result = torch.empty_like(q)
            for start in range(0, p, QUERY_BLOCK):
                end = min(start + QUERY_BLOCK, p)
                _, probabilities = _probabilities(q, keys, start, end, bucket.branches_SP)
                seen = values[:, :, :end].reshape(s * g, end, k)
                result[:, :, start:end] = torch.bmm(probabilities, seen).view(s, h, -1, k)
            _put(result, bucket, out)
        ctx.save_for_backward(q_BHLK, k_BGLK, v_BGLK)
        ctx.buckets = buckets
        return out.view(b, n, h, k).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q_BHLK, k_BGLK, v_BGLK = ctx.saved_tensors
        b, h, n, k = q_BHLK.shape
        groups = k_BGLK.shape[1]
        dq, dk, dv = (q_BHLK.new_zeros(b * n, heads, k) for heads in (h, groups, groups))
        for bucket in ctx.buckets:
            taken = [_take(x, bucket) for x in (q_BHLK, k_BGLK, v_BGLK, grads[0])]
            for out, d in zip((dq, dk, dv), _bucket_backward(bucket, *taken), strict=True):
                _put(d, bucket, out)
        dq, dk, dv = (d.view(b, n, -1, k).transpose(1, 2) for d in (dq, dk, dv))
        return dq, dk, dv, None


def _bucket_backward(
    bucket: Bucket, q: Tensor, keys: Tensor, values: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of one bucket's queries, keys and values."""
    s, h, p, k = q.shape
    g = keys.shape[1]
    dq = torch.empty_like(q)
    dk, dv = (torch.zeros_like(keys, dtype=torch.float32) for _ in range(2))
    for start in range(0, p, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, p)
        query, probabilities = _probabilities(q, keys, start, end, bucket.branches_SP)
        upstream = grad[:, :, start:end].reshape(s * g, -1, k)
        d = torch.bmm(upstream, values[:, :, :end].reshape(s * g, end, k).mT)
        d = torch._softmax_backward_data(d, probabilities, -1, probabilities.dtype)
        dv[:, :, :end] += torch.bmm(probabilities.mT, upstream).view(s, g, end, k)
        dk[:, :, :end] += torch.bmm(d.mT, query).view(s, g, end, k)
        dq_block = torch.bmm(d, keys[:, :, :end].reshape(s * g, end, k)).mul_(k**-0.5)
        dq[:, :, start:end] = dq_block.view(s, h, -1, k)
    return dq, dk.to(keys.dtype), dv.to(values.dtype)
