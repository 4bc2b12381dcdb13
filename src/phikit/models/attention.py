"""Causal attention of whole rows: torch's fused kernels, and on a CPU a faster way.

Shapes: B rows, L sequence, H query heads, G key-value heads, R = H / G, K head size, Q queries of
one block, S what the block sees.

On a CPU, batched products over a block of queries at a time reach several times the rate of torch's
fused kernel, forward and backward. Nothing above the diagonal block is computed; probabilities are
made again in the backward pass, so that memory grows with L and not with L². Scores are rounded to
the inputs' precision, as in the reference's plain attention, and their softmax is computed in
float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

QUERY_BLOCK = 128

#: (scores of some queries [B, H, Q, S], the first query, one past the last): hides what it must
Hide = Callable[[Tensor, int, int], None]


def causal(q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
    """Every position attends to itself and all earlier ones of its row: [B, H, L, K]."""
    if q_BHLK.device.type == "cpu":
        return _Causal.apply(q_BHLK, k_BGLK, v_BGLK).transpose(1, 2)
    return F.scaled_dot_product_attention(
        q_BHLK, k_BGLK, v_BGLK, is_causal=True, enable_gqa=q_BHLK.shape[1] != k_BGLK.shape[1]
    )


class _Causal(Function):
    @staticmethod
    def forward(ctx: Any, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        ctx.save_for_backward(q_BHLK, k_BGLK, v_BGLK)
        return blockwise(q_BHLK * q_BHLK.shape[-1] ** -0.5, k_BGLK, v_BGLK)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHLK, k_BGLK, v_BGLK = ctx.saved_tensors
        scale = q_BHLK.shape[-1] ** -0.5
        dq, dk, dv = blockwise_backward(q_BHLK * scale, k_BGLK, v_BGLK, grads[0].transpose(1, 2))
        return dq.mul_(scale), dk, dv


def blockwise(q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, hide: Hide | None = None) -> Tensor:
    """Causal attention, a block of queries at a time: [B, L, H, K].

    Args:
        q_BHLK: the queries, scaled already.
        hide: sets scores to minus infinity, beyond those of later positions.
    """
    b, h, n, k = q_BHLK.shape
    g = k_BGLK.shape[1]
    keys, values = k_BGLK.reshape(b * g, n, k), v_BGLK.reshape(b * g, n, k)
    later = _later(n, q_BHLK)
    out_BLHK = q_BHLK.new_empty(b, n, h, k)
    for start, end in _blocks(n):
        query = _block(q_BHLK, start, end, g)
        weights = _weights(query, keys[:, :end], b, start, later, hide)
        block = torch.bmm(weights, values[:, :end]).view(b, h, end - start, k)
        out_BLHK[:, start:end] = block.transpose(1, 2)
    return out_BLHK


def blockwise_backward(
    q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor, grad_BHLK: Tensor, hide: Hide | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the scaled queries, the keys and the values of `blockwise`."""
    b, h, n, k = q_BHLK.shape
    g = k_BGLK.shape[1]
    keys, values = k_BGLK.reshape(b * g, n, k), v_BGLK.reshape(b * g, n, k)
    later = _later(n, q_BHLK)
    dq = torch.empty_like(q_BHLK, memory_format=torch.contiguous_format)
    # many blocks add to each key: in float32, so that nothing is lost in between
    dk, dv = (torch.zeros_like(keys, dtype=torch.float32) for _ in range(2))
    for start, end in _blocks(n):
        query, upstream = _block(q_BHLK, start, end, g), _block(grad_BHLK, start, end, g)
        weights = _weights(query, keys[:, :end], b, start, later, hide)
        d = torch.bmm(upstream, values[:, :end].mT)
        d = torch._softmax_backward_data(d, weights, -1, weights.dtype)
        dv[:, :end] += torch.bmm(weights.mT, upstream)
        dk[:, :end] += torch.bmm(d.mT, query)
        dq[:, :, start:end] = torch.bmm(d, keys[:, :end]).view(b, h, -1, k)
    dk, dv = (x.to(keys.dtype).view(b, g, n, k) for x in (dk, dv))
    return dq, dk, dv


def _blocks(length: int) -> list[tuple[int, int]]:
    return [(i, min(i + QUERY_BLOCK, length)) for i in range(0, length, QUERY_BLOCK)]


def _block(x_BHLK: Tensor, start: int, end: int, kv_heads: int) -> Tensor:
    """A block of positions of every head, by the key-value head it goes with: [B·G, R·Q, K]."""
    return x_BHLK[:, :, start:end].reshape(x_BHLK.shape[0] * kv_heads, -1, x_BHLK.shape[-1])


def _weights(
    query: Tensor, seen: Tensor, rows: int, start: int, later: Tensor, hide: Hide | None
) -> Tensor:
    """Probabilities [B·G, R·Q, S] of queries [B·G, R·Q, K] over keys [B·G, S, K]."""
    end = seen.shape[1]
    scores = torch.bmm(query, seen.mT).view(rows, -1, end - start, end)
    scores[..., start:].masked_fill_(later[: end - start, : end - start], float("-inf"))
    if hide is not None:
        hide(scores, start, end)
    return scores.softmax(-1).view(len(query), -1, end)


def _later(length: int, like: Tensor) -> Tensor:
    n = min(length, QUERY_BLOCK)
    return torch.ones(n, n, dtype=torch.bool, device=like.device).triu(1)
