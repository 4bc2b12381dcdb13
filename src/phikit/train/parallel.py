"""Several processes as one: fully sharded weights, from outside the model.

Every process draws the same batch and takes every n-th of its microbatches; each holds a slice of
every weight, gradient and moment, and gathers a layer's weights when that layer is at work
(PyTorch's FSDP2). Losses are sums that are divided by the whole batch's weight, so how many
processes there are changes nothing but rounding. `torchrun` starts the processes and tells torch
who they are.

Processes may also share the layers' matrices (`phikit.train.tensors`) or a row's tokens
(`phikit.train.contexts`); they form a box of data × context × tensor. Weights are sliced over data
and context together: both see other tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from phikit.errors import PhikitError
from phikit.models.decoder import Decoder
from phikit.models.lanes import lane_count
from phikit.models.lora import lora_layers
from phikit.train import contexts, tensors
from phikit.train.adapters import empty_like
from phikit.train.settings import ParallelSettings

M = TypeVar("M")


def launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def join() -> None:
    """Meets the other processes that torchrun started.

    torchrun keeps one store over all its restarts, in which the addresses of processes that are
    gone still stand. So each restart meets under keys of its own.
    """
    if dist.is_initialized():
        return
    store, number, count = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun tells it no other way
    dist.init_process_group(
        "nccl" if torch.cuda.is_available() else "gloo",
        store=dist.PrefixStore(f"attempt-{attempt}", store), rank=number, world_size=count,
    )  # fmt: skip


def leave() -> None:
    """Takes this process out of the group, if it is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 when it is alone."""
    return dist.get_rank() if world() > 1 else 0


def lanes(parameters: int, threads: int) -> int:
    """How many microbatches a process computes side by side; see `phikit.models.lanes`."""
    return lane_count(parameters, threads) if world() == 1 else 1


def barrier() -> None:
    """Waits until all processes are here."""
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


@dataclass(frozen=True)
class Processes:
    """The box of processes: how many share the microbatches, the rows' tokens, the matrices."""

    data: int = 1
    context: int = 1
    tensor: int = 1
    mesh: DeviceMesh | None = None

    @classmethod
    def of(cls, model: Decoder, settings: ParallelSettings) -> Processes:
        """Those of this run.

        Raises:
            PhikitError: there are not so many, or the model cannot be shared so.
        """
        shared = settings.context * settings.tensor
        data = settings.data or max(1, world() // shared)
        if data * shared != world():
            raise PhikitError(
                f"parallel: data {data} × context {settings.context} × tensor {settings.tensor} "
                f"are {data * shared} processes, and there are {world()}",
                f"torchrun --nproc-per-node {data * shared} -m phikit train ...",
            )
        if world() == 1:
            return cls()
        if settings.tensor > 1 and any(lora_layers(model)):
            raise PhikitError(
                "parallel: an adapter's layers cannot be shared as matrices yet",
                "set parallel.tensor=1; data and context work with adapters",
            )
        tensors.check(model.config, settings.tensor, settings.context, data * settings.context)
        mesh = init_device_mesh(
            model.lm_head.weight.device.type, (data, settings.context, settings.tensor),
            mesh_dim_names=("data", "context", "tensor"),
        )  # fmt: skip
        return cls(data, settings.context, settings.tensor, mesh)

    def share(self, micros: Sequence[M]) -> list[tuple[M, float]]:
        """This process's microbatches, each with what its loss counts.

        All processes take as many, because they gather weights together; who runs out takes the
        first microbatch again for nothing. Those that share its tokens all compute its whole loss.
        """
        me = 0 if self.mesh is None else self.mesh.get_local_rank("data")
        mine = [(micro, 1.0 / self.context) for micro in micros[me :: self.data]]
        most = -(-len(micros) // self.data)
        return mine + [(micros[0], 0.0) for _ in range(most - len(mine))]

    def add_up(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Sums of what the processes' shares counted; those that share matrices have the same."""
        if world() == 1 or not sums:
            return dict(sums)
        values = torch.tensor(list(sums.values()), dtype=torch.float64)
        dist.all_reduce(values)
        return dict(zip(sums, (values / self.tensor).tolist(), strict=True))


def shard(model: Decoder, processes: Processes) -> None:
    """Leaves each process a slice of every weight; all must hold the same weights before."""
    mesh = processes.mesh
    assert mesh is not None
    if processes.tensor > 1:
        tensors.cut(model, mesh["tensor"])
    if processes.context > 1:
        contexts.share_rows(model, mesh["context"].get_group())
    slices = mesh["data"]
    if processes.context > 1:
        slices = mesh["data", "context"]._flatten("slices")
    for layer in model.model.layers:
        fully_shard(layer, mesh=slices, shard_placement_fn=_across)
    fully_shard(model, mesh=slices, shard_placement_fn=_across, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # losses are divided by the whole batch's weight already: gradients are summed
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _across(parameter: nn.Parameter) -> Shard | None:
    """Slices a matrix whose rows are cut already by its columns, so that neither way nests."""
    by_rows = isinstance(parameter, DTensor) and parameter.placements[-1] == Shard(0)
    return Shard(1) if by_rows else None


def whole(model: Decoder) -> Decoder:
    """The model with whole weights, if it is sharded; every process must ask."""
    if not isinstance(model, FSDPModule):
        return model
    held = {n: full(p.detach()) for n, p in model.named_parameters()}
    other = empty_like(model)
    relaid = tensors.Relaid(tensors.parts(model), tensors.ways(model), 1)
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.data = relaid(name, held[name])
    return other.train(model.training)


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


def sliced(whole: Tensor, like: Tensor | None) -> Tensor:
    """This process's slice of a whole tensor, cut as `like`."""
    if not isinstance(like, DTensor):
        return whole
    part = whole
    for dim, placement in enumerate(like.placements):
        if isinstance(placement, Shard):
            chunks = part.chunk(like.device_mesh.size(dim), placement.dim)
            part = chunks[like.device_mesh.get_local_rank(dim)]
    return DTensor.from_local(
        part.contiguous(), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )


def rows_of(x: Tensor) -> slice:
    """Which rows this process holds: FSDP cuts like `torch.chunk`."""
    rows = x.shape[0]
    if not isinstance(x, DTensor):
        return slice(0, rows)
    each = -(-rows // world())
    start = min(rows, each * rank())
    return slice(start, min(rows, start + each))


def cut(x: Tensor) -> bool:
    """Whether processes that share matrices each hold another part of it."""
    return isinstance(x, DTensor) and x.device_mesh.ndim > 1


def total_norm(grads: Sequence[Tensor], tensor: int) -> float:
    """The norm of all gradients together, whatever each process holds of them.

    Args:
        tensor: how many processes share matrices; what is not cut, all of them hold.
    """
    squares = torch.zeros((), dtype=torch.float64)
    for grad in grads:
        square = local(grad).double().square().sum().cpu()
        squares += square if cut(grad) else square / tensor
    dist.all_reduce(squares)
    return float(squares.sqrt())
