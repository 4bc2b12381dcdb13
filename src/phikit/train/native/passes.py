"""Norms with the residual sum before them, and SwiGLU, by the C kernels.

Shapes: B rows, L sequence, N = B·L tokens, D model width, F inner width, P partial sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from phikit.train.native.build import library


def norm_runs(x_BLD: Tensor, delta_BLD: Tensor | None, dtype: torch.dtype) -> bool:
    """Whether `NativeNorm` takes them: a float32 residual between products in bfloat16."""
    return (
        x_BLD.device.type == "cpu"
        and x_BLD.dtype == torch.float32
        and dtype == torch.bfloat16
        and (delta_BLD is None or delta_BLD.dtype == torch.bfloat16)
        and library() is not None
    )


def gate_runs(gate_up_BLF: Tensor) -> bool:
    """Whether `NativeSwiGLU` takes it."""
    return (
        gate_up_BLF.device.type == "cpu"
        and gate_up_BLF.dtype == torch.bfloat16
        and library() is not None
    )


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


class NativeNorm(Function):
    """x + delta, and RMSNorm of it in bfloat16. Keeps the sum."""

    @staticmethod
    def forward(
        ctx: Any, x_BLD: Tensor, delta_BLD: Tensor | None, weight_D: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x_BLD = x_BLD.contiguous()
        delta_BLD = None if delta_BLD is None else delta_BLD.contiguous()
        width = x_BLD.shape[-1]
        n = x_BLD.numel() // width
        sum_BLD = x_BLD if delta_BLD is None else torch.empty_like(x_BLD)
        scale_N = x_BLD.new_empty(n)
        out_BLD = torch.empty_like(x_BLD, dtype=torch.bfloat16)
        kernels = library()
        assert kernels is not None
        kernels.phikit_sum_norm(
            x_BLD.data_ptr(), _address(delta_BLD), weight_D.data_ptr(), sum_BLD.data_ptr(),
            scale_N.data_ptr(), out_BLD.data_ptr(), n, width, eps, torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(sum_BLD, scale_N, weight_D)
        ctx.has_delta = delta_BLD is not None
        return sum_BLD if ctx.has_delta else x_BLD.view_as(x_BLD), out_BLD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sum_BLD, scale_N, weight_D = ctx.saved_tensors
        d_sum_BLD, d_out_BLD = (g.contiguous() for g in grads)
        n, width = len(scale_N), len(weight_D)
        d_BLD = torch.empty_like(sum_BLD)
        d_delta = torch.empty_like(d_BLD, dtype=torch.bfloat16) if ctx.has_delta else None
        kernels = library()
        assert kernels is not None
        d_weight_PD = weight_D.new_empty(kernels.phikit_norm_parts(n), width)
        kernels.phikit_sum_norm_back(
            sum_BLD.data_ptr(), scale_N.data_ptr(), weight_D.data_ptr(), d_out_BLD.data_ptr(),
            d_sum_BLD.data_ptr(), d_BLD.data_ptr(), _address(d_delta), d_weight_PD.data_ptr(),
            n, width, torch.get_num_threads(),
        )  # fmt: skip
        return d_BLD, d_delta, d_weight_PD.sum(0) if ctx.needs_input_grad[2] else None, None


class NativeSwiGLU(Function):
    """silu(gate) × up, rounded once. Keeps its input."""

    @staticmethod
    def forward(ctx: Any, gate_up_BLF: Tensor) -> Tensor:
        gate_up_BLF = gate_up_BLF.contiguous()
        *rows, both = gate_up_BLF.shape
        out_BLF = gate_up_BLF.new_empty(*rows, both // 2)
        kernels = library()
        assert kernels is not None
        kernels.phikit_gate(
            gate_up_BLF.data_ptr(), out_BLF.data_ptr(), gate_up_BLF.numel() // both, both // 2,
            torch.get_num_threads(),
        )  # fmt: skip
        ctx.save_for_backward(gate_up_BLF)
        return out_BLF

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_BLF,) = ctx.saved_tensors
        both = gate_up_BLF.shape[-1]
        d_out, d = grads[0].contiguous(), torch.empty_like(gate_up_BLF)
        kernels = library()
        assert kernels is not None
        kernels.phikit_gate_back(
            gate_up_BLF.data_ptr(), d_out.data_ptr(), d.data_ptr(), gate_up_BLF.numel() // both,
            both // 2, torch.get_num_threads(),
        )  # fmt: skip
        return d
