"""Tensor parallelism from outside the model: a layer's matrices cut over several processes.

Every process of the group computes a share of the heads and of the MLP's inner width: the fused
projections are cut by rows, the projections back to the model's width by columns, and two sums over
the group per layer make the result whole (Shoeybi et al. 2019, "Megatron-LM"). PyTorch's own plans
do the work (`torch.distributed.tensor.parallel`).

A fused projection holds queries, keys and values (gate and up) one after the other, so cutting its
rows in two would give one process the queries. Its rows are therefore put into another order
first, in which each slice holds its share of every part; `Relaid` knows the way there and
back: whatever leaves the run (the model, a checkpoint read by another number) is put back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.train.fast import decoder_layers

Parts = Mapping[str, Sequence[int]]  # parameter → rows of each of its fused parts


def check(config: DecoderConfig, tensor: int, context: int, slices: int) -> None:
    """Can a model be cut so?

    Raises:
        PhikitError: heads or widths do not divide; says which.
    """
    ways = tensor * context
    if config.heads % ways or config.kv_heads % ways:
        raise PhikitError(
            f"parallel: {config.heads} query and {config.kv_heads} key-value heads cannot be "
            f"shared by tensor × context = {ways} processes",
            "both numbers of heads must be multiples of it",
        )
    if tensor > 1 and (config.intermediate_size % tensor or config.hidden_size % slices):
        raise PhikitError(
            f"parallel: inner width {config.intermediate_size} by tensor = {tensor}, or width "
            f"{config.hidden_size} by data × context = {slices}, leaves a remainder",
            "choose numbers of processes that divide them",
        )


def parts(model: Decoder) -> dict[str, tuple[int, ...]]:
    """Where the parts of the fused projections end: queries, keys, values; gate, up."""
    found: dict[str, tuple[int, ...]] = {}
    c = model.config
    for name, _ in model.named_modules():
        if name.endswith("self_attn"):
            keys = c.kv_heads * c.head_dim
            found[f"{name}.qkv_proj.weight"] = (c.heads * c.head_dim, keys, keys)
        elif name.endswith("mlp"):
            found[f"{name}.gate_up_proj.weight"] = (c.intermediate_size, c.intermediate_size)
    return found


def ways(model: Decoder) -> int:
    """How many processes share the matrices of a model."""
    return model.config.heads // decoder_layers(model)[0].self_attn.heads


def order(rows: Sequence[int], ways: int) -> Tensor:
    """Which row of a fused projection goes where, so that `ways` equal slices share every part."""
    chunks: list[list[Tensor]] = [[] for _ in range(ways)]
    start = 0
    for n in rows:
        for mine, chunk in zip(chunks, torch.arange(start, start + n).chunk(ways), strict=True):
            mine.append(chunk)
        start += n
    return torch.cat([torch.cat(mine) for mine in chunks])


@dataclass(frozen=True)
class Relaid:
    """Whole tensors laid out for `before` processes, laid out for `after` (1: as published)."""

    fused: Parts
    before: int
    after: int

    def changes(self, name: str) -> bool:
        """Whether this tensor's rows stand elsewhere in the new layout."""
        return self.before != self.after and self._rows(name) is not None

    def __call__(self, name: str, x: Tensor) -> Tensor:
        rows = self._rows(name)
        if rows is None or self.before == self.after:
            return x
        published = x.index_select(0, order(rows, self.before).argsort())
        return published.index_select(0, order(rows, self.after))

    def _rows(self, name: str) -> Sequence[int] | None:
        """A checkpoint's names end with the parameter's."""
        return next((rows for known, rows in self.fused.items() if name.endswith(known)), None)


@torch.no_grad()
def cut(model: Decoder, mesh: DeviceMesh) -> None:
    """Leaves each process of the mesh its share of every layer; the rest stays whole."""
    ways = mesh.size()
    parameters = dict(model.named_parameters())
    for name, rows in parts(model).items():
        parameters[name].copy_(parameters[name][order(rows, ways)])
    plan = {
        "self_attn.qkv_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(),
        "mlp.gate_up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(),
    }
    for layer in decoder_layers(model):
        parallelize_module(layer, mesh, plan)
        for name in plan:
            module = layer.get_submodule(name)
            if isinstance(plan[name], ColwiseParallel):
                module.register_forward_pre_hook(_given, prepend=True)
            else:
                module.register_forward_hook(_summed)
        layer.self_attn.heads //= ways
        layer.self_attn.kv_heads //= ways


class _Arrived(Function):
    """The same tensor, whose values, and whose gradient's, are there.

    PyTorch's plans return a sum that is still on its way, which waits for itself when torch next
    computes with it. Kernels that take an address do not know of that.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _arrived(x).view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _arrived(grads[0])


def _arrived(x: Tensor) -> Tensor:
    return x.wait() if isinstance(x, AsyncCollectiveTensor) else x


def _given(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(_Arrived.apply(x) for x in inputs)


def _summed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return _Arrived.apply(output)
