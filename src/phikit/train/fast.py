"""A decoder layer as training runs it: the same mathematics, fewer passes over memory.

Shapes: B rows, L sequence, D model width, F both halves of the MLP's inner width, H query heads,
M heads of the fused projection, K head size.

Between the matrix products a layer does little arithmetic on much memory, and what autograd keeps
of it is most of a step's memory. Here a norm takes the residual sum with it and keeps that sum
alone, SwiGLU keeps its input alone, and attention (`phikit.train.attention`) keeps the fused
projection alone; the rest is computed again in the backward pass, at no matrix product's cost.
On a CPU in bfloat16 the C kernels of `native` do each in one pass, and the products too where there
is a matrix unit; what stands here is for all else.
The projections stay modules, so whatever wraps them (LoRA) keeps working.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from phikit.models.decoder import Attend, Decoder, Layer, RMSNorm
from phikit.train.attention import Confined, Rope
from phikit.train.gradients import gradient
from phikit.train.native.passes import NativeNorm, NativeSwiGLU, gate_runs, norm_runs
from phikit.train.native.products import linear


def layer_forward(layer: Layer, x_BLD: Tensor, rope: Rope, attend: Attend) -> Tensor:
    """What `layer(x, rope, attend)` gives, when it attends within packed documents."""
    if not isinstance(attend, Confined):
        return Layer.forward(layer, x_BLD, rope, attend)
    a = layer.self_attn
    b, n, _ = x_BLD.shape
    x_BLD, h_BLD = add_norm(x_BLD, None, layer.input_layernorm)
    qkv_BLMK = linear(a.qkv_proj, h_BLD).view(b, n, a.heads + 2 * a.kv_heads, a.head_dim)
    mixed_BLHK = attend.fused(qkv_BLMK, rope, a.heads, a.kv_heads)
    delta_BLD = linear(a.o_proj, mixed_BLHK.view(b, n, -1))
    x_BLD, h_BLD = add_norm(x_BLD, delta_BLD, layer.post_attention_layernorm)
    m = layer.mlp
    return x_BLD + linear(m.down_proj, swiglu(linear(m.gate_up_proj, h_BLD)))


def decoder_layers(model: Decoder) -> list[Layer]:
    """The layers that are plain decoder layers."""
    return [layer for layer in model.model.layers if isinstance(layer, Layer)]


@contextmanager
def fast_layers(model: Decoder) -> Iterator[None]:
    """Within, the model's layers and last norm run so; what they are given otherwise the layers
    compute as ever."""
    layers: list[Any] = decoder_layers(model)
    last: Any = model.model.norm
    for layer in layers:
        layer.forward = partial(layer_forward, layer)
    last.forward = lambda x_BLD: add_norm(x_BLD, None, last)[1]
    try:
        yield
    finally:
        for module in (*layers, last):
            module.__dict__.pop("forward", None)


def add_norm(x_BLD: Tensor, delta_BLD: Tensor | None, norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """x + delta, and its RMSNorm in the precision of matrix products."""
    kind = x_BLD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_BLD.dtype
    if norm_runs(x_BLD, delta_BLD, dtype):
        return NativeNorm.apply(x_BLD, delta_BLD, norm.weight, norm.eps)
    return _AddNorm.apply(x_BLD, delta_BLD, norm.weight, norm.eps, dtype)


def swiglu(gate_up_BLF: Tensor) -> Tensor:
    """silu(gate) × up, from the two side by side."""
    kind: Any = NativeSwiGLU if gate_runs(gate_up_BLF) else _SwiGLU
    return kind.apply(gate_up_BLF)


def embedding(layer: nn.Embedding, ids_BL: Tensor) -> Tensor:
    """layer(ids), whose gradient goes to the rows that were looked up."""
    return _Embedding.apply(layer.weight, ids_BL)


class _Embedding(Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, ids_BL: Tensor) -> Tensor:
        ctx.save_for_backward(weight_VD, ids_BL)
        return F.embedding(ids_BL, weight_VD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        weight_VD, ids_BL = ctx.saved_tensors
        d_ND = grads[0].flatten(0, -2).float()

        def write(out_VD: Tensor, add: bool) -> None:
            (out_VD if add else out_VD.zero_()).index_add_(0, ids_BL.flatten(), d_ND)

        return gradient(weight_VD, write) if ctx.needs_input_grad[0] else None, None


class _AddNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BLD: Tensor,
        delta_BLD: Tensor | None,
        weight_D: Tensor,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        if delta_BLD is not None:
            x_BLD = x_BLD + delta_BLD
        width = x_BLD.shape[-1]
        norm = torch.linalg.vector_norm(x_BLD, dim=-1, keepdim=True)
        scale_BL1 = norm.square_().div_(width).add_(eps).rsqrt_()
        ctx.save_for_backward(x_BLD, scale_BL1, weight_D)
        ctx.delta_dtype = None if delta_BLD is None else delta_BLD.dtype
        if delta_BLD is None:
            x_BLD = x_BLD.view_as(x_BLD)
        return x_BLD, (x_BLD * scale_BL1).mul_(weight_D).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, scale_BL1, weight_D = ctx.saved_tensors
        dx_BLD, dh_BLD = grads
        normed_BLD = x_BLD * scale_BL1
        dh_BLD = dh_BLD.to(x_BLD.dtype, copy=True)
        share_BLD = dh_BLD * normed_BLD
        d_weight_D = share_BLD.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        mean_BL1 = share_BLD.mul_(weight_D).mean(-1, keepdim=True)
        d = dh_BLD.mul_(weight_D).addcmul_(normed_BLD, mean_BL1, value=-1.0)
        d = d.mul_(scale_BL1).add_(dx_BLD)
        d_delta = None if ctx.delta_dtype is None else d.to(ctx.delta_dtype)
        return d, d_delta, d_weight_D, None, None


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, gate_up_BLF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_BLF)
        gate, up = gate_up_BLF.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up_BLF,) = ctx.saved_tensors
        gate, up = gate_up_BLF.chunk(2, dim=-1)
        d = torch.empty_like(gate_up_BLF)
        d_gate, d_up = d.chunk(2, dim=-1)
        torch.mul(grads[0], F.silu(gate), out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return d
