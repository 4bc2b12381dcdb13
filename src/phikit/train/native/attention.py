"""Attention confined to documents by the C kernels.

Shapes: B rows, L sequence, T = B·L tokens, S documents, H query heads, G key-value heads,
M = H + 2G heads of the fused projection, K head size, R rotated part of a head.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from phikit.errors import PhikitError
from phikit.train.native.build import library

_WIDTH = 32  # heads are a multiple of this
_WIDEST = 512


class _Packed(ctypes.Structure):
    """`Packed` of attention.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in (
            "heads", "kv_heads", "head_dim", "rotary", "documents", "longest")),
        *((name, ctypes.c_void_p) for name in (
            "starts", "lengths", "branches", "cosine", "sine")),
    )  # fmt: skip


def runs(qkv_BLMK: Tensor) -> bool:
    """Whether the kernels take such a projection: in bfloat16, on a CPU with products in it."""
    k = qkv_BLMK.shape[-1]
    if qkv_BLMK.device.type != "cpu" or qkv_BLMK.dtype != torch.bfloat16:
        return False
    kernels = library()
    return (
        kernels is not None
        and k % _WIDTH == 0
        and k <= _WIDEST
        and bool(kernels.phikit_confined_runs())
    )


@dataclass(frozen=True)
class Places:
    """Where documents are and how far their tokens are rotated, as the kernels read it.

    Attributes:
        starts_S, lengths_S: int32, in the rows laid end to end.
        branches_T: int32; see `phikit.train.attention.confined`.
        turns: float32 cosines and sines [T, R / 2], or None: nothing is rotated here.
        tokens: T.
    """

    starts_S: Tensor
    lengths_S: Tensor
    branches_T: Tensor | None
    turns: tuple[Tensor, Tensor] | None
    tokens: int

    @property
    def everywhere(self) -> bool:
        """Whether every token is of a document."""
        return int(self.lengths_S.sum()) == self.tokens

    def packed(self, heads: int, kv_heads: int, head_dim: int) -> _Packed:
        cos, sin = self.turns or (None, None)
        return _Packed(
            heads, kv_heads, head_dim, 0 if cos is None else 2 * cos.shape[1],
            len(self.lengths_S), max(self.lengths_S.tolist(), default=0),
            *(None if t is None else t.data_ptr()
              for t in (self.starts_S, self.lengths_S, self.branches_T, cos, sin)),
        )  # fmt: skip


class NativeAttention(Function):
    """Keeps the projection and one number per query and head; makes probabilities again."""

    @staticmethod
    def forward(ctx: Any, qkv_BLMK: Tensor, places: Places, heads: int, kv_heads: int) -> Tensor:
        b, n, _, k = qkv_BLMK.shape
        qkv_BLMK = qkv_BLMK.contiguous()
        make = torch.empty if places.everywhere else torch.zeros
        out_BLHK = make(b, n, heads, k, dtype=qkv_BLMK.dtype)
        log_z_TH = torch.empty(b * n, heads, dtype=torch.float32)
        kernels, packed = library(), places.packed(heads, kv_heads, k)
        assert kernels is not None
        _check(
            kernels.phikit_confined_forward(
                ctypes.addressof(packed), qkv_BLMK.data_ptr(), out_BLHK.data_ptr(),
                log_z_TH.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
        ctx.save_for_backward(qkv_BLMK, log_z_TH)
        ctx.rest = places, heads, kv_heads
        return out_BLHK

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qkv_BLMK, log_z_TH = ctx.saved_tensors
        places, heads, kv_heads = ctx.rest
        grad_BLHK = grads[0].contiguous()
        d_BLMK = torch.empty_like(qkv_BLMK) if places.everywhere else torch.zeros_like(qkv_BLMK)
        kernels, packed = library(), places.packed(heads, kv_heads, qkv_BLMK.shape[-1])
        assert kernels is not None
        _check(
            kernels.phikit_confined_backward(
                ctypes.addressof(packed), qkv_BLMK.data_ptr(), log_z_TH.data_ptr(),
                grad_BLHK.data_ptr(), d_BLMK.data_ptr(), torch.get_num_threads(),
            )
        )  # fmt: skip
        return d_BLMK, None, None, None


def _check(failed: int) -> None:
    if failed:
        raise PhikitError("there is no memory for the scores of attention")
