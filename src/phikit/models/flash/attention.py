"""Differential attention: what of two softmax maps is left when one is taken from the other.

Shapes: B rows, L positions, T keys, Q queries of a block, E key-value heads, P = E / 2 pairs of
them, R query heads of a key-value head, K head size, V = 2 K size of a pair's values.

Query head 4p + 2r + s (for R = 2) and key head 2p + s make map s of pair p; both maps weigh the
same values, those of heads 2p and 2p + 1 side by side. So there are E ordinary heads with keys of
width K and P heads with values of width V, and keys and values lie as the projection gives them.
Source: Ye et al. 2024 (arXiv 2410.05258), in the grouping of the released model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

QUERY_BLOCK = 128

#: the keys [N, E, T, K] and values [N, P, T, V] of some consecutive positions
Piece = tuple[Tensor, Tensor]


def split_queries(q_BLD: Tensor, kv_heads: int, head_dim: int) -> Tensor:
    """[B, L, D] → [B, E, R, L, K]."""
    b, length, width = q_BLD.shape
    r = width // (kv_heads * head_dim)
    heads = q_BLD.view(b, length, kv_heads // 2, r, 2, head_dim)
    return heads.permute(0, 2, 4, 3, 1, 5).reshape(b, kv_heads, r, length, head_dim)


def split_keys(k_BLD: Tensor, kv_heads: int) -> Tensor:
    """[B, L, E·K] → [B, E, L, K], a view."""
    return k_BLD.view(*k_BLD.shape[:2], kv_heads, -1).transpose(1, 2)


def split_values(v_BLD: Tensor, kv_heads: int) -> Tensor:
    """[B, L, P·V] → [B, P, L, V], a view."""
    return split_keys(v_BLD, kv_heads // 2)


@dataclass(frozen=True)
class Block:
    """Queries from `start` to `end`, which see keys from `low` to `high`.

    Attributes:
        hidden: True [B, Q, U] where a query does not see a key, for the last U of the T keys; all
            queries see the others.
    """

    start: int
    end: int
    low: int
    high: int
    hidden: Tensor


def blocks(first_BL: Tensor, last_BL: Tensor) -> list[Block]:
    """Cuts queries that see the keys first ... last, both included, into blocks."""
    found = []
    length = first_BL.shape[1]
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        first, last = first_BL[:, start:end, None], last_BL[:, start:end, None]
        low, high = int(first.min()), int(last.max()) + 1
        clear = int(last.min()) + 1 if int(first.max()) == low else low
        key = torch.arange(clear, high, device=first.device)
        found.append(Block(start, end, low, high, (key < first) | (key > last)))
    return found


def attend(q_BERLK: Tensor, k_BETK: Tensor, v_BPTV: Tensor, cut: list[Block]) -> Tensor:
    """Both maps' outputs [B, P, 2, R, L, V], a block of queries at a time.

    While training, each block's probabilities are made again in the backward pass, so memory grows
    with the length and not with its square.
    """
    again = torch.is_grad_enabled() and q_BERLK.requires_grad
    k_BETK, v_BPTV = k_BETK.contiguous(), v_BPTV.contiguous()  # so that blocks of them are views
    outs = []
    for block in cut:
        part = (
            q_BERLK[:, :, :, block.start : block.end],
            k_BETK[:, :, block.low : block.high],
            v_BPTV[:, :, block.low : block.high],
            block.hidden,
        )
        outs.append(checkpoint(_attend, *part, use_reentrant=False) if again else _attend(*part))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=4)


def _attend(q_BERQK: Tensor, k_BETK: Tensor, v_BPTV: Tensor, hidden_BQU: Tensor) -> Tensor:
    b, e, r, q, k = q_BERQK.shape
    t, v = v_BPTV.shape[2:]
    query = (q_BERQK * k**-0.5).reshape(b * e, r * q, k)
    scores = torch.bmm(query, k_BETK.flatten(0, 1).mT).view(b, e, r, q, t)
    u = hidden_BQU.shape[2]
    scores[..., t - u :].masked_fill_(hidden_BQU[:, None, None], float("-inf"))
    weights = scores.softmax(-1).to(v_BPTV.dtype).view(b * e // 2, 2 * r * q, t)
    return torch.bmm(weights, v_BPTV.flatten(0, 1)).view(b, e // 2, 2, r, q, v)


def attend_step(q_NERK: Tensor, pieces: Iterable[Piece], length_N: Tensor) -> Tensor:
    """One query per row, which sees the keys below its row's length: [N, P, 2, R, V].

    Args:
        pieces: the keys [N, E, T, K] and values [N, P, T, V] of the first T positions, of the next
            T, and so on. Each piece should lie in memory without gaps: it is then read where it is,
            once, while a part of a longer piece would be copied first, at ten times the cost.
            What lies past a row's length must be finite.
        length_N: on the CPU.
    """
    n, e, r, k = q_NERK.shape
    shortest, start = int(length_N.min()), 0
    wide = torch.promote_types(q_NERK.dtype, torch.float32)
    query = (q_NERK * k**-0.5).reshape(n * e, r, k)
    # each piece has a softmax of its own, small enough to stay in the caches; then they are weighed
    outs, masses = [], []
    for keys, values in pieces:
        size = keys.shape[2]
        scores = torch.bmm(query, keys.flatten(0, 1).mT)
        if start + size > shortest:
            hidden_NT = torch.arange(start, start + size) >= length_N[:, None]
            lines = scores.view(n, e, r, size)
            # finite: a row that has nothing in this piece gets a weight of 0 for it below
            lowest = torch.finfo(scores.dtype).min / 2
            lines.masked_fill_(hidden_NT.to(q_NERK.device)[:, None, None], lowest)
        start += size
        weights = torch.softmax(scores, -1, dtype=wide)
        # at the highest score, weight = exp(score) / mass
        masses.append(scores.amax(-1).to(wide) - weights.amax(-1).log())
        weights = weights.to(q_NERK.dtype).view(n * e // 2, 2 * r, size)
        outs.append(torch.bmm(weights, values.flatten(0, 1)))
    if len(outs) == 1:
        return outs[0].view(n, e // 2, 2, r, 2 * k)
    share = torch.stack(masses).softmax(0).view(len(outs), n, e // 2, 2, r, 1)
    out = (torch.stack(outs).view(len(outs), n, e // 2, 2, r, 2 * k) * share).sum(0)
    return out.to(q_NERK.dtype)
