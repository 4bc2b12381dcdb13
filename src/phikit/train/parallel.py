"""Several processes as one: fully sharded weights, from outside the model.

Every process draws the same batch and takes every n-th of its microbatches; each holds a slice of
every weight, gradient and moment, and gathers a layer's weights when that layer is at work
(PyTorch's FSDP2). Losses are sums that are divided by the whole batch's weight, so how many
processes there are changes nothing but rounding. `torchrun` starts the processes and tells torch
who they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from phikit.models.decoder import Decoder
from phikit.models.lanes import lane_count
from phikit.train.adapters import empty_like

M = TypeVar("M")


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def join() -> None:
    """Meets the other processes."""
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world() > 1 else 0


def lanes(parameters: int, threads: int) -> int:
    """How many microbatches a process computes side by side; see `phikit.models.lanes`."""
    return lane_count(parameters, threads) if world() == 1 else 1


def barrier() -> None:
    if world() > 1:
        dist.barrier()


@contextmanager
def first_one_first() -> Iterator[None]:
    """The first process does what is inside before the others do."""
    if rank():
        barrier()
    yield
    if not rank():
        barrier()


def shard(model: Decoder) -> None:
    """Leaves each process a slice of every weight; all must hold the same weights before."""
    mesh = init_device_mesh(model.lm_head.weight.device.type, (world(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # losses are divided by the whole batch's weight already: gradients are summed
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def whole(model: Decoder) -> Decoder:
    """The model with whole weights, if it is sharded; every process must ask."""
    if not isinstance(model, FSDPModule):
        return model
    tensors = {n: full(p.detach()) for n, p in model.named_parameters()}
    other = empty_like(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.data = tensors[name]
    return other.train(model.training)


def share(micros: Sequence[M]) -> list[tuple[M, float]]:
    """This process's microbatches, each with what its loss counts.

    All processes take as many, because they gather weights together; who runs out takes the first
    microbatch again for nothing.
    """
    mine = [(micro, 1.0) for micro in micros[rank() :: world()]]
    most = -(-len(micros) // world())
    return mine + [(micros[0], 0.0) for _ in range(most - len(mine))]


def add_up(sums: Mapping[str, float]) -> dict[str, float]:
    """Sums over the processes."""
    if world() == 1 or not sums:
        return dict(sums)
    values = torch.tensor(list(sums.values()), dtype=torch.float64)
    dist.all_reduce(values)
    return dict(zip(sums, values.tolist(), strict=True))


def full(x: Tensor) -> Tensor:
    """A tensor that may be in slices, whole; every process must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def local(x: Tensor) -> Tensor:
    """This process's slice."""
    return x.to_local() if isinstance(x, DTensor) else x


def gathered(part: Tensor, like: Tensor) -> Tensor:
    """The whole of what every process holds a slice of, cut as `like`; every process must ask."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    ).full_tensor()


def rows_of(x: Tensor) -> slice:
    """Which rows this process holds: FSDP cuts like `torch.chunk`."""
    rows = x.shape[0]
    if not isinstance(x, DTensor):
        return slice(0, rows)
    each = -(-rows // world())
    start = min(rows, each * rank())
    return slice(start, min(rows, start + each))
