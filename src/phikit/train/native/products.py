"""A linear layer in the processor's matrix unit: forward, and the gradients of input and weights.

torch's library gives some shapes of a training step to one thread and copies what has to be turned;
its gradients of weights are rounded to bfloat16 for every microbatch and made float32 after that.
`products.c` shares every product between the threads, and leaves those gradients unrounded.

Shapes: N tokens, I and O input and output features.
"""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function

from phikit.train.gradients import gradient
from phikit.train.held import held
from phikit.train.native.build import library

_WHOLE = 32  # features come in multiples of this
# below it, a block of the result is written about as often as it is added to, and torch is faster
_LEAST = 256


class _Product(ctypes.Structure):
    """`Product` of products.c."""

    _fields_ = (
        *((n, ctypes.c_void_p) for n in ("left", "right", "out", "room")),
        *((n, ctypes.c_int32) for n in ("rows", "columns", "depth")),
        *((n, ctypes.c_int32) for n in ("left_turned", "right_turned", "wide", "add")),
    )


def linear(layer: nn.Module, x_BLI: Tensor) -> Tensor:
    """layer(x), by the C kernels where they serve it."""
    if linear_runs(layer, x_BLI):
        return NativeLinear.apply(x_BLI, layer.weight)
    return layer(x_BLI)


def linear_runs(layer: nn.Module, x_BLI: Tensor) -> bool:
    """Whether `NativeLinear` is this layer: a plain one, whose products are in bfloat16."""
    if type(layer) is not nn.Linear or x_BLI.dtype != torch.bfloat16:
        return False
    return (
        layer.bias is None
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and min(layer.weight.shape) >= _LEAST
        and product_runs(layer.weight)
    )


def product_runs(weight_OI: Tensor) -> bool:
    """Whether the kernels multiply with a weight of this shape, and make its gradient."""
    return (
        type(weight_OI) is nn.Parameter
        and weight_OI.device.type == "cpu"
        and weight_OI.dtype in (torch.float32, torch.bfloat16)
        and not (weight_OI.shape[0] % _WHOLE or weight_OI.shape[1] % _WHOLE)
        and (kernels := library()) is not None
        and bool(kernels.phikit_products_run())
    )


class NativeLinear(Function):
    """x · Wᵀ. Keeps its input."""

    @staticmethod
    def forward(ctx: Any, x_BLI: Tensor, weight_OI: Tensor) -> Tensor:
        x_BLI = x_BLI.contiguous()
        w_OI = _rounded(weight_OI)
        ctx.save_for_backward(x_BLI, weight_OI)
        x_NI = x_BLI.flatten(0, -2)
        out_NO = x_NI.new_empty(len(x_NI), len(w_OI))
        _multiply(x_NI, w_OI, out_NO, right_turned=True)
        return out_NO.view(*x_BLI.shape[:-1], len(w_OI))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_BLI, weight_OI = ctx.saved_tensors
        d_NO, x_NI = grads[0].contiguous().flatten(0, -2), x_BLI.flatten(0, -2)
        d_x = d_weight = None
        if ctx.needs_input_grad[0]:
            d_x = torch.empty_like(x_BLI)
            _multiply(d_NO, _rounded(weight_OI), d_x.view_as(x_NI))
        if ctx.needs_input_grad[1]:
            d_weight = gradient(weight_OI, partial(outer_sum, d_NO, x_NI))
        return d_x, d_weight


def outer_sum(left_NO: Tensor, right_NI: Tensor, out_OI: Tensor, add: bool) -> None:
    """Σ over rows of left ⊗ right, unrounded, to `out`, or added to it."""
    _multiply(left_NO, right_NI, out_OI, left_turned=True, add=add)


def _rounded(weight_OI: Tensor) -> Tensor:
    """The weight in bfloat16."""

    def made() -> Tensor:
        return weight_OI.detach().to(torch.bfloat16).contiguous()

    gathered = dist.is_available() and dist.is_initialized()  # for the layer's turn alone
    return made() if gathered else held(weight_OI, torch.bfloat16, made)


def _multiply(
    left: Tensor, right: Tensor, out: Tensor, left_turned: bool = False,
    right_turned: bool = False, add: bool = False,
) -> None:  # fmt: skip
    """out = left · right, of matrices that lie turned where so told."""
    kernels = library()
    assert kernels is not None
    depth = left.shape[0] if left_turned else left.shape[1]
    product = _Product(
        left.data_ptr(), right.data_ptr(), out.data_ptr(), None, *out.shape, depth,
        left_turned, right_turned, out.dtype == torch.float32, add,
    )  # fmt: skip
    call = ctypes.byref(product), torch.get_num_threads()
    room = left.new_empty(kernels.phikit_product_room(*call))
    product.room = room.data_ptr()
    kernels.phikit_product(*call)
