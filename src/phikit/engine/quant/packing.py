"""Weights as small integers with scales, and how they lie in memory.

Shapes: N rows, K columns, S groups of a row (S × group = K; S = 1 for a single scale per row),
U = N / 16 units of 16 rows (the last one filled up with zeros), C columns / 4.

A weight is scale × integer, symmetric: -127..127 in 8 bits, -8..7 in 4. Scales are bfloat16. In
memory 16 rows lie side by side, four neighbouring columns of each together:

    int8  data [U, K / 4, 16, 4]   uint8: the integer + 128
    int4  data [U, K / 8, 16, 4]   uint8: byte j is column j (low half) and j + 4 (high), each + 8
    scales     [U, S, 16]          bfloat16

This is the order in which processors with integer dot products read them, and the order in the
files: a saved model is used straight from the mapped file.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from phikit.errors import PhikitError

LANES = 16
GROUPS = (128, 64, 32)
BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How to quantise: `kind` is "int8" or "int4"; `group` columns share a scale, 0: whole rows.

    Raises:
        PhikitError: a kind or a group that there is not.
    """

    kind: str = "int4"
    group: int = 32

    def __post_init__(self) -> None:
        if self.kind not in BITS:
            raise PhikitError(f"weights in {self.kind!r}; there are {', '.join(BITS)}")
        if self.group not in GROUPS and not (self.group == 0 and self.kind == "int8"):
            raise PhikitError(
                f"groups of {self.group} for {self.kind}; choose one of "
                f"{', '.join(map(str, GROUPS))}" + (", or 0" if self.kind == "int8" else "")
            )

    def fits(self, columns: int) -> bool:
        """Whether a matrix of so many columns divides into whole groups."""
        return columns % (self.group or 32) == 0

    def activation_group(self, columns: int) -> int:
        """Columns over which the activations share a scale."""
        return self.group or next(g for g in GROUPS if columns % g == 0)

    def scale_groups(self, columns: int) -> int:
        """Scales in each row of a matrix of so many columns."""
        return columns // self.group if self.group else 1


def _padded(x: Tensor) -> Tensor:
    missing = -x.shape[0] % LANES
    return torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) if missing else x


def pack(q_NK: Tensor, scale_NS: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Integers and scales in the layout above: (data, scales)."""
    n, k = _padded(q_NK).shape
    offset = 128 if kind == "int8" else 8
    u_NK = (_padded(q_NK).to(torch.int16) + offset).to(torch.uint8)
    data_UCLJ = u_NK.view(n // LANES, LANES, k // 4, 4).transpose(1, 2)
    if kind == "int4":
        data_UCLJ = data_UCLJ[:, 0::2] | (data_UCLJ[:, 1::2] << 4)
    scales = _padded(scale_NS).view(n // LANES, LANES, -1).transpose(1, 2)
    return data_UCLJ.contiguous(), scales.to(torch.bfloat16).contiguous()


def unpack_integers(data: Tensor, kind: str, n: int) -> Tensor:
    """The integers of packed data, int8 [N, K]."""
    if kind == "int4":
        data = torch.stack((data & 15, data >> 4), dim=2).flatten(1, 2)
    u = data.transpose(1, 2).reshape(data.shape[0] * LANES, -1)
    return (u[:n].to(torch.int16) - (128 if kind == "int8" else 8)).to(torch.int8)


def unpack_scales(scales: Tensor, n: int) -> Tensor:
    """bfloat16 [N, S]."""
    return scales.transpose(1, 2).reshape(-1, scales.shape[1])[:n]


def dequantise(q_NK: Tensor, scale_NS: Tensor) -> Tensor:
    """scale × integer, float32 [N, K]."""
    n, k = q_NK.shape
    groups = scale_NS.shape[1]
    return (q_NK.view(n, groups, -1).float() * scale_NS[..., None].float()).view(n, k)


# --- rounding to nearest -------------------------------------------------------------------------

_SHRINK = (1.0, 0.92, 0.84)  # of the range: a finer step for many weights, for a clipped extreme


def choose_scales(w_NSE: Tensor, kind: str, importance_SE: Tensor | None = None) -> Tensor:
    """A bfloat16 scale per group of float32 weights [N, S, E]: the one of least squared error.

    Four bits hold -8..7, so the scale is signed: the extreme weight may take the -8.

    Args:
        importance_SE: how much the error of each column counts; equal when left out.
    """
    extreme = w_NSE.gather(-1, w_NSE.abs().argmax(-1, keepdim=True))[..., 0]
    if kind == "int8":
        # upwards, so that the extreme stays within 127
        return _up(extreme.abs() / 127)
    candidates = [(extreme * shrink / -8).to(torch.bfloat16) for shrink in _SHRINK]
    candidates += [(extreme.abs() / 7).to(torch.bfloat16)]
    best = candidates[0]
    least = _squared_error(w_NSE, best, importance_SE)
    for scale in candidates[1:]:
        error = _squared_error(w_NSE, scale, importance_SE)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def _squared_error(w_NSE: Tensor, scale_NS: Tensor, importance_SE: Tensor | None) -> Tensor:
    scale = scale_NS[..., None].float()
    error_NSE = (round_to(w_NSE, scale, "int4").mul_(scale) - w_NSE).square_()
    if importance_SE is not None:
        error_NSE.mul_(importance_SE)
    return error_NSE.sum(-1)


def _up(x: Tensor) -> Tensor:
    """bfloat16, rounded away from zero."""
    half = x.to(torch.bfloat16)
    larger = (half.view(torch.int16) + 1).view(torch.bfloat16)
    return torch.where(half.float().abs() < x.abs(), larger, half)


def round_to(w: Tensor, scale: Tensor, kind: str) -> Tensor:
    """The nearest integers of float32 weights, as float32; a zero scale gives zeros."""
    low, high = (-127, 127) if kind == "int8" else (-8, 7)
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale)
    return (w * inverse).round_().clamp_(low, high)


def quantise(w_NK: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Rounds a matrix to nearest: (int8 [N, K], bfloat16 scales [N, S])."""
    n, k = w_NK.shape
    groups = scheme.scale_groups(k)
    w_NSE = w_NK.float().view(n, groups, -1)
    scale_NS = choose_scales(w_NSE, scheme.kind)
    q = round_to(w_NSE, scale_NS[..., None].float(), scheme.kind)
    return q.view(n, k).to(torch.int8), scale_NS
