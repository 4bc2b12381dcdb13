"""Attention of single new positions to paged keys and values.

Shapes: N rows, H query heads, G key-value heads, E = H / G query heads per key-value head, K head
size, S positions of a block, J blocks of the longest table, I blocks read in place, U shared units,
C chairs of a unit.

A block that one row reads alone is read where it lies, one small product for each. A block that
several rows read, at any level of a tree of prefixes, becomes a *unit*: its rows sit in its chairs,
and attention to it is one matrix product for all of them. The scores of both are then put in the
order of each row's positions, so that a row's softmax is over one line, whoever shares its blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from phikit.engine.pool import Pool

_SCATTERED = 3  # read in place when the range is at most so many times the blocks wanted
_FETCH = 24  # what fetching a block costs, in query rows of a product


@dataclass(frozen=True)
class Plan:
    """Where the rows' blocks are, for one set of tables.

    The lines of the product's output are the own blocks' [I, G, E], the units' [U, G, C, E], and
    one line of zeros.

    Attributes:
        low: the first block read in place; when `fetch_I` is there those are fetched instead.
        owner_I: which row reads each block alone (any row where none does).
        unit_U: the block of each unit; chair_UC: the rows in its chairs.
        line: for each [N, G, E, J] its line.
        back_I, back_U: for each line, which of [N, G, E, J] it is.
    """

    low: int
    fetch_I: Tensor | None
    owner_I: Tensor
    unit_U: Tensor | None
    chair_UC: Tensor | None
    line: Tensor
    back_I: Tensor
    back_U: Tensor | None


def plan(table_NJ: np.ndarray, count_N: np.ndarray, g: int, e: int, device: torch.device) -> Plan:
    """Finds out which blocks are shared.

    Args:
        table_NJ: block numbers; count_N: how many of each row count.
        g, e: key-value heads, and query heads of each.
    """
    n, j = table_NJ.shape
    row_T, column_T = np.nonzero(np.arange(j) < count_N[:, None])
    block_T = table_NJ[row_T, column_T]
    order = np.argsort(block_T, kind="stable")
    sorted_T = block_T[order]
    start = np.flatnonzero(np.r_[True, sorted_T[1:] != sorted_T[:-1]])
    count = np.diff(np.r_[start, len(sorted_T)])
    own = order[start[count == 1]]  # entries whose block is theirs alone
    block = block_T[own]
    low, span = (int(block[0]), int(block[-1] - block[0]) + 1) if len(own) else (0, 1)
    fetch = None
    if span > _SCATTERED * len(own) + 8:
        fetch, item, span = block, np.arange(len(own)), len(own)
    else:
        item = block - low
    owner, place = np.zeros(span, np.int64), np.zeros(span, np.int64)
    owner[item], place[item] = row_T[own], column_T[own]
    # the first line of each (row, column), and the step from a head's lines to the next one's
    first, step = np.full((n, j), -1), np.zeros((n, j), np.int64)
    first[row_T[own], column_T[own]], step[row_T[own], column_T[own]] = item * (g * e), e
    lines = span * g * e
    unit = chair = back_u = None
    if (count > 1).any():
        shared = count > 1
        unit, chair, entry, seat = _seat(order, start[shared], count[shared], e)
        unit = block_T[unit]
        at, c = (row_T[entry], column_T[entry]), chair.shape[1]
        u, chair_no = seat // c, seat % c
        first[at], step[at] = lines + (u * (g * c) + chair_no) * e, c * e
        place_UC = np.zeros(chair.size, np.int64)
        place_UC[seat] = column_T[entry]
        chair = row_T[chair.ravel()].reshape(chair.shape)
        head = (np.arange(g)[:, None] * e)[None, :, None] + np.arange(e)  # [1, G, 1, E]
        row_U1C1 = chair[:, None, :, None] * (g * e) + head
        back_u = row_U1C1 * j + place_UC.reshape(-1, 1, c, 1)
        lines += chair.size * g * e
    line = first[:, None, None, :] + np.arange(g)[:, None, None] * step[:, None, None, :]
    line = np.where(first[:, None, None, :] < 0, lines, line + np.arange(e)[:, None])
    back = (owner[:, None] * (g * e) + np.arange(g * e)) * j + place[:, None]

    def put(a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a).ravel()).to(device)

    return Plan(
        low=low,
        fetch_I=None if fetch is None else put(fetch),
        owner_I=put(owner),
        unit_U=None if unit is None else put(unit),
        chair_UC=None if chair is None else put(chair),
        line=put(line),
        back_I=put(back),
        back_U=None if back_u is None else put(back_u),
    )


def _seat(
    order: np.ndarray, start: np.ndarray, count: np.ndarray, e: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Deals the entries of shared blocks to units of one size.

    Returns:
        for each unit one of its entries; the entries in its chairs [U, C] (empty ones repeat the
        first); then the entries, and the chair of each, counted over all units.
    """
    sizes = [2**i for i in range(1, int(count.max() - 1).bit_length() + 1)]
    c = min(sizes, key=lambda s: int((-(-count // s)).sum()) * (s * e + _FETCH))
    units = -(-count // c)
    base = np.r_[0, np.cumsum(units)]
    within = np.arange(count.sum()) - np.repeat(np.r_[0, np.cumsum(count)[:-1]], count)
    entry = order[np.repeat(start, count) + within]
    seat = np.repeat(base[:-1], count) * c + within
    unit = order[np.repeat(start, units)]
    chair = np.repeat(unit, c)
    chair[seat] = entry
    return unit, chair.reshape(-1, c), entry, seat


class RowAttention:
    """What the new position of each row attends to, for one step and all layers.

    Args:
        plan: of the rows' tables.
        position_N: the rows' new positions; they see these and all earlier ones.
        places: where the new keys and values are written, see `Pool.places`.
        window: how many latest positions a row sees, itself included; None for all.
    """

    def __init__(
        self, pool: Pool, plan: Plan, position_N: Tensor, places: Tensor, window: int | None
    ) -> None:
        self.pool, self.plan, self.places = pool, plan, places
        self.n = len(position_N)
        length = len(plan.line) // (self.n * pool.kv_heads)  # E × J, to be divided once E is known
        self.position_N, self.window, self._ej = position_N, window, length
        self._bias: Tensor | None = None

    def _mask(self, length: int) -> Tensor:
        """0 where a row may look, -inf elsewhere: [N, 1, 1, J × S] in float32."""
        at_L = torch.arange(length, device=self.position_N.device)
        hidden_NL = at_L > self.position_N[:, None]
        if self.window is not None:
            hidden_NL |= at_L <= self.position_N[:, None] - self.window
        bias = torch.zeros(hidden_NL.shape, device=at_L.device).masked_fill_(hidden_NL, -math.inf)
        return bias[:, None, None]

    def __call__(self, layer: int, q_NHK: Tensor, k_NGK: Tensor, v_NGK: Tensor) -> Tensor:
        """Stores the new keys and values, and attends: [N, H × K]."""
        pool, p = self.pool, self.plan
        n, h, k = q_NHK.shape
        g, s = pool.kv_heads, pool.size
        e = h // g
        j = self._ej // e
        if self._bias is None:
            self._bias = self._mask(j * s)
        pool.write(layer, self.places, k_NGK, v_NGK)
        own_k, own_v = self._own(layer)
        i, shared = len(own_k) // g, p.chair_UC is not None
        lines = len(p.back_I)
        total = lines + (len(p.back_U) if p.back_U is not None else 0)
        q_NHK = q_NHK.contiguous()
        score = q_NHK.new_zeros(total + 1, s)
        own_q = q_NHK.index_select(0, p.owner_I).view(i * g, e, k)
        torch.bmm(own_q, own_k.transpose(1, 2), out=score[:lines].view(i * g, e, s))
        if shared:
            u = len(p.unit_U)  # type: ignore[arg-type]
            unit_k, unit_v = self._units(layer)
            q = q_NHK.index_select(0, p.chair_UC).view(u, -1, g, e, k)  # type: ignore[arg-type]
            q = q.transpose(1, 2).reshape(u * g, -1, k)
            torch.bmm(q, unit_k.transpose(1, 2), out=score[lines:total].view(u * g, -1, s))
        score_NGEL = score.index_select(0, p.line).view(n, g, e, j * s)
        score_NGEL = torch.add(self._bias, score_NGEL, alpha=k**-0.5)
        weight = torch.softmax(score_NGEL, -1).to(q_NHK.dtype).view(-1, s)
        out = q_NHK.new_zeros(total + 1, k)
        own_w = weight.index_select(0, p.back_I).view(i * g, e, s)
        torch.bmm(own_w, own_v, out=out[:lines].view(i * g, e, k))
        if shared:
            unit_w = weight.index_select(0, p.back_U).view(u * g, -1, s)  # type: ignore[arg-type]
            torch.bmm(unit_w, unit_v, out=out[lines:total].view(u * g, -1, k))
        parts = out.index_select(0, p.line).view(n * h, j, k)
        return parts.sum(1, dtype=torch.float32).to(q_NHK.dtype).view(n, h * k)

    def _own(self, layer: int) -> tuple[Tensor, Tensor]:
        """The blocks that one row reads alone: each [I × G, S, K]."""
        p, k, v = self.plan, self.pool.k[layer], self.pool.v[layer]
        if p.fetch_I is not None:
            k, v = k.index_select(0, p.fetch_I), v.index_select(0, p.fetch_I)
        else:
            high = p.low + len(p.owner_I)
            k, v = k[p.low : high], v[p.low : high]
        return k.flatten(0, 1), v.flatten(0, 1)

    def _units(self, layer: int) -> tuple[Tensor, Tensor]:
        unit_U = self.plan.unit_U
        assert unit_U is not None
        k, v = self.pool.k[layer], self.pool.v[layer]
        return k.index_select(0, unit_U).flatten(0, 1), v.index_select(0, unit_U).flatten(0, 1)
