"""Mamba's selective scan in plain torch: forward and backward, exact, in bounded memory.

Shapes: B rows, L sequence, I channels, N states of a channel, T positions of a chunk.

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t        y_t = C_t · h_t + D x_t

with A, D learned per channel and Δ, B, C computed from the input (Gu and Dao 2023, arXiv
2312.00752). The work goes through memory in chunks small enough for the cache: a chunk's decays
and inputs are made by whole-chunk operations, one fused multiply-add per position turns the inputs
into states where they lie, and one batched product reads all outputs. That is the least arithmetic
there is; nothing is divided, so no step, however long, can overflow. Channels are the innermost
dimension, because vector units want long rows. The backward pass makes each chunk's states again
from the state at its start and walks them in reverse.

Everything is computed in float32 (float64 for float64 inputs) whatever the inputs' precision.

A narrow problem keeps the machine idle between those multiply-adds. There the sequence is cut into
stretches that run side by side, twice: once for the state that each would end in from nothing, from
which follow the states they start in, and once from these.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

CHUNK = 16  # positions; measured on wide layers: 8 to 64 are within a third of each other
_WIDE = {"cpu": 8192, "cuda": 2_097_152}  # states that one multiply-add should work on
_SHORTEST = 16  # positions of a stretch


def selective_scan(
    x_BLI: Tensor,
    delta_BLI: Tensor,
    a_NI: Tensor,
    b_BLN: Tensor,
    c_BLN: Tensor,
    d_I: Tensor,
    bias_I: Tensor,
    state_BNI: Tensor | None = None,
    fresh_BL: Tensor | None = None,
    valid_BL: Tensor | None = None,
    stretches: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence over whole sequences.

    Args:
        x_BLI: what flows in.
        delta_BLI: the time steps before softplus, without their bias; bias_I: that bias.
        a_NI: the rates, negative.
        state_BNI: the state before the first position; zeros when left out.
        fresh_BL: True where a document begins: what came before is forgotten there.
        valid_BL: False for padding: the state passes it unchanged.
        stretches: how many pieces run side by side; chosen by the width when left out.

    Returns:
        y_BLI in x's precision, and the state after the last position [B, N, I]. Both carry
        gradients to every real-valued argument.
    """
    wide = torch.float64 if x_BLI.dtype == torch.float64 else torch.float32
    b, length, i = x_BLI.shape
    state = state_BNI
    if state is None:
        state = torch.zeros(b, a_NI.shape[0], i, dtype=wide, device=x_BLI.device)
    small = (a_NI.to(wide), d_I.to(wide), bias_I.to(wide))
    inputs = (x_BLI, delta_BLI, b_BLN, c_BLN)
    if stretches is None:
        stretches = _stretches(b * a_NI.numel(), length, x_BLI.device.type)
    if stretches == 1:
        y, end = _Scan.apply(*inputs, *small, state.to(wide), fresh_BL, valid_BL)
        return y, end
    return _side_by_side(inputs, small, state.to(wide), fresh_BL, valid_BL, stretches)


def scan_step(
    x_NI: Tensor, delta_NI: Tensor, a_SI: Tensor, b_NS: Tensor, c_NS: Tensor, d_I: Tensor,
    bias_I: Tensor, state_NSI: Tensor,
) -> Tensor:  # fmt: skip
    """One position for every row; the state [N, S, I] is brought forward in place (S states)."""
    wide = state_NSI.dtype
    step_NI = F.softplus(delta_NI.to(wide) + bias_I.to(wide))
    x = x_NI.to(wide)
    decay_NSI = torch.mul(step_NI[:, None], a_SI.to(wide)).exp_()
    state_NSI.mul_(decay_NSI).addcmul_(b_NS.to(wide)[:, :, None], (step_NI * x)[:, None])
    y_NI = torch.bmm(c_NS.to(wide)[:, None], state_NSI).squeeze(1)
    return torch.addcmul(y_NI, d_I.to(wide), x).to(x_NI.dtype)


def _stretches(states: int, length: int, device: str) -> int:
    wanted = -(-_WIDE.get(device, _WIDE["cuda"]) // max(1, states))
    return max(1, min(wanted, length // _SHORTEST))


def _side_by_side(
    inputs: tuple[Tensor, ...], small: tuple[Tensor, ...], state_BNI: Tensor,
    fresh_BL: Tensor | None, valid_BL: Tensor | None, stretches: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    b, length, i = inputs[0].shape
    each = -(-length // stretches)
    padding = stretches * each - length
    if valid_BL is None and padding:
        valid_BL = torch.ones(b, length, dtype=torch.bool, device=state_BNI.device)

    def cut(x: Tensor) -> Tensor:
        filled = F.pad(x, (0, 0) * (x.dim() - 2) + (0, padding)) if padding else x
        return filled.reshape(b * stretches, each, *x.shape[2:])

    x, delta, bb, cc = (cut(t) for t in inputs)
    fresh = None if fresh_BL is None else cut(fresh_BL)
    valid = None if valid_BL is None else cut(valid_BL)
    nothing = state_BNI.new_zeros(b * stretches, *state_BNI.shape[1:])
    _, alone = _Scan.apply(x, delta, bb, cc, *small, nothing, fresh, valid)
    a_NI, _, bias_I = small
    time_BLI = F.softplus(delta.to(a_NI.dtype) + bias_I)
    if valid is not None:
        time_BLI = time_BLI * valid[..., None]
    decay = torch.exp(time_BLI.sum(1)[:, None] * a_NI)
    if fresh is not None:
        decay = decay * ~fresh.any(1)[:, None, None]
    alone, decay = (t.view(b, stretches, *t.shape[1:]) for t in (alone, decay))
    starts = [state_BNI]
    for s in range(stretches - 1):
        starts.append(torch.addcmul(alone[:, s], decay[:, s], starts[-1]))
    start = torch.stack(starts, 1).flatten(0, 1)
    y, ends = _Scan.apply(x, delta, bb, cc, *small, start, fresh, valid)
    return y.reshape(b, -1, i)[:, :length], ends.view(b, stretches, *ends.shape[1:])[:, -1]


class _Chunk:
    """One chunk's tensors, time first, computed in one precision."""

    def __init__(
        self, at: slice, inputs: tuple[Tensor, ...], small: tuple[Tensor, ...],
        fresh_BL: Tensor | None, valid_BL: Tensor | None,
    ) -> None:  # fmt: skip
        a_NI, _, bias_I = small
        wide = a_NI.dtype
        self.x, self.raw, self.b, self.c = (t[:, at].transpose(0, 1).to(wide) for t in inputs)
        self.raw = self.raw + bias_I
        self.time = F.softplus(self.raw)  # [T, B, I]
        self.valid = None if valid_BL is None else valid_BL[:, at].t()[..., None]
        if self.valid is not None:
            self.time = self.time * self.valid
        self.keep = None if fresh_BL is None else ~fresh_BL[:, at].t()[..., None, None]
        self.inflow = self.time * self.x

    def run(self, a_NI: Tensor, state_BNI: Tensor, decay: Tensor, h: Tensor) -> None:
        """Fills the buffers [T, B, N, I] with the decays and the states."""
        torch.mul(self.time[:, :, None], a_NI, out=decay).exp_()
        if self.keep is not None:
            decay.mul_(self.keep)
        torch.mul(self.b[..., None], self.inflow[:, :, None], out=h)
        previous = state_BNI
        for t in range(h.shape[0]):
            torch.addcmul(h[t], decay[t], previous, out=h[t])
            previous = h[t]


class _Scan(Function):
    """Saves its inputs and the state at each chunk's start: L/T states instead of L."""

    @staticmethod
    def forward(
        ctx: Any, x_BLI: Tensor, delta_BLI: Tensor, b_BLN: Tensor, c_BLN: Tensor, a_NI: Tensor,
        d_I: Tensor, bias_I: Tensor, state_BNI: Tensor, fresh_BL: Tensor | None,
        valid_BL: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        length = x_BLI.shape[1]
        inputs, small = (x_BLI, delta_BLI, b_BLN, c_BLN), (a_NI, d_I, bias_I)
        chunks = range(0, length, CHUNK)
        y_BLI = torch.empty_like(x_BLI)
        starts = state_BNI.new_empty(len(chunks) + 1, *state_BNI.shape)
        starts[0] = state_BNI
        shape = (min(CHUNK, length), *state_BNI.shape)
        decay, h = state_BNI.new_empty(shape), state_BNI.new_empty(shape)
        with torch.autocast(x_BLI.device.type, enabled=False):
            for index, first in enumerate(chunks):
                at = slice(first, min(first + CHUNK, length))
                n = at.stop - first
                chunk = _Chunk(at, inputs, small, fresh_BL, valid_BL)
                chunk.run(a_NI, starts[index], decay[:n], h[:n])
                y_TBI = (chunk.c[:, :, None] @ h[:n]).squeeze(2).addcmul_(d_I, chunk.x)
                y_BLI[:, at] = y_TBI.transpose(0, 1)
                starts[index + 1] = h[n - 1]
        end = starts[-1].clone()
        ctx.save_for_backward(*inputs, *small, starts[:-1], fresh_BL, valid_BL)
        return y_BLI, end

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *saved, starts, fresh_BL, valid_BL = ctx.saved_tensors
        inputs, small = tuple(saved[:4]), tuple(saved[4:])
        a_NI = small[0]
        length = inputs[0].shape[1]
        totals = _Totals(inputs, small)
        carry = grads[1].clone()  # of the state at the end of the chunk, from what follows it
        shape = (min(CHUNK, length), *carry.shape)
        decay, h, g = (carry.new_empty(shape) for _ in range(3))
        with torch.autocast(carry.device.type, enabled=False):
            for index in reversed(range(len(starts))):
                at = slice(index * CHUNK, min((index + 1) * CHUNK, length))
                n = at.stop - at.start
                chunk = _Chunk(at, inputs, small, fresh_BL, valid_BL)
                chunk.run(a_NI, starts[index], decay[:n], h[:n])
                gy_TBI = grads[0][:, at].transpose(0, 1).to(a_NI.dtype)
                torch.mul(chunk.c[..., None], gy_TBI[:, :, None], out=g[:n])
                g[n - 1] += carry
                for t in range(n - 2, -1, -1):
                    torch.addcmul(g[t], decay[t + 1], g[t + 1], out=g[t])
                torch.mul(decay[0], g[0], out=carry)
                totals.add(at, chunk, gy_TBI, starts[index], decay[:n], h[:n], g[:n])
        return *totals.inputs, totals.a, totals.d, totals.bias, carry, None, None


class _Totals:
    """The gradients, filled chunk by chunk."""

    def __init__(self, inputs: tuple[Tensor, ...], small: tuple[Tensor, ...]) -> None:
        self.inputs = [torch.empty_like(t) for t in inputs]
        self.a, self.d, self.bias = (torch.zeros_like(t) for t in small)
        self.a_NI, self.d_I = small[0], small[1]

    def add(
        self, at: slice, chunk: _Chunk, gy: Tensor, start_BNI: Tensor, decay: Tensor, h: Tensor,
        g: Tensor,
    ) -> None:  # fmt: skip
        """g [T, B, N, I] is the gradient of each state; `decay` is used up."""
        gc_TBN = (h @ gy[..., None]).squeeze(3)
        gb_TBN = (g @ chunk.inflow[..., None]).squeeze(3)
        g_inflow = (chunk.b[:, :, None] @ g).squeeze(2)
        # of Δ A, the exponent: g · decay · the state before
        decay[0].mul_(start_BNI)
        decay[1:].mul_(h[:-1])
        decay.mul_(g)
        self.a += torch.mul(decay, chunk.time[:, :, None], out=g).sum((0, 1))
        g_time = decay.mul_(self.a_NI).sum(2).addcmul_(g_inflow, chunk.x)
        g_raw = g_time * torch.sigmoid(chunk.raw)
        if chunk.valid is not None:
            g_raw = g_raw * chunk.valid
        gx = (g_inflow * chunk.time).addcmul_(gy, self.d_I)
        self.d += (gy * chunk.x).sum((0, 1))
        self.bias += g_raw.sum((0, 1))
        for total, part in zip(self.inputs, (gx, g_raw, gb_TBN, gc_TBN), strict=True):
            total[:, at] = part.transpose(0, 1)
