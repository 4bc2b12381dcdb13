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

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

_BLOCK = 128  # queries


def causal(q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
    """Every position attends to itself and all earlier ones of its row: [B, H, L, K]."""
    if q_BHLK.device.type == "cpu":
        return _Causal.apply(q_BHLK, k_BGLK, v_BGLK)
    return F.scaled_dot_product_attention(
        q_BHLK, k_BGLK, v_BGLK, is_causal=True, enable_gqa=q_BHLK.shape[1] != k_BGLK.shape[1]
    )


class _Causal(Function):
    @staticmethod
    def forward(ctx: Any, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        b, h, n, k = q_BHLK.shape
        g = k_BGLK.shape[1]
        out_BHLK = torch.empty_like(q_BHLK, memory_format=torch.contiguous_format)
        for start in range(0, n, _BLOCK):
            end = min(start + _BLOCK, n)
            _, weight = _weights(q_BHLK, k_BGLK, start, end)
            seen = v_BGLK[:, :, :end].reshape(b * g, end, k)
            out_BHLK[:, :, start:end] = torch.bmm(weight, seen).view(b, h, end - start, k)
        ctx.save_for_backward(q_BHLK, k_BGLK, v_BGLK)
        return out_BHLK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BHLK, k_BGLK, v_BGLK = ctx.saved_tensors
        b, h, n, k = q_BHLK.shape
        g = k_BGLK.shape[1]
        dq = torch.empty_like(q_BHLK, memory_format=torch.contiguous_format)
        # many blocks add to each key: in float32, so that nothing is lost in between
        dk, dv = (k_BGLK.new_zeros(b, g, n, k, dtype=torch.float32) for _ in range(2))
        for start in range(0, n, _BLOCK):
            end = min(start + _BLOCK, n)
            query, weight = _weights(q_BHLK, k_BGLK, start, end)
            upstream = grads[0][:, :, start:end].reshape(b * g, -1, k)
            keys, values = (t[:, :, :end].reshape(b * g, end, k) for t in (k_BGLK, v_BGLK))
            d = torch.bmm(upstream, values.mT)
            d = torch._softmax_backward_data(d, weight, -1, weight.dtype)
            dv[:, :, :end] += torch.bmm(weight.mT, upstream).view(b, g, end, k)
            dk[:, :, :end] += torch.bmm(d.mT, query).view(b, g, end, k)
            dq[:, :, start:end] = (torch.bmm(d, keys) * k**-0.5).view(b, h, -1, k)
        return dq, dk.to(k_BGLK.dtype), dv.to(v_BGLK.dtype)


def _weights(q_BHLK: Tensor, k_BGLK: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """For queries start..end: scaled queries [B·G, R·Q, K] and probabilities [B·G, R·Q, S]."""
    b, h, _, k = q_BHLK.shape
    g, size = k_BGLK.shape[1], end - start
    query = (q_BHLK[:, :, start:end] * k**-0.5).reshape(b * g, h // g * size, k)
    score = torch.bmm(query, k_BGLK[:, :, :end].reshape(b * g, end, k).mT)
    later = torch.full((size, size), -math.inf, dtype=score.dtype, device=score.device).triu(1)
    score.view(b * h, size, end)[:, :, start:].add_(later)
    return query, score.softmax(-1)
