"""Checkpoints written by several processes at once, each its own slices, as safetensors.

PyTorch's Distributed Checkpoint does the work, with its safetensors storage: what n processes
wrote, any other number reads, and nothing is pickled into the files.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import CheckpointException, TensorStorageMetadata
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from phikit.files import write_json
from phikit.models.checkpoint import os_error
from phikit.train import parallel
from phikit.train.tensors import Relaid


def write(folder: Path, tensors: Mapping[str, Tensor], rest: Mapping[str, object]) -> None:
    """Writes a checkpoint of all processes; `folder` appears in one piece. All must call it.

    Args:
        rest: goes into `state.json`, beside tensors that are single numbers.

    Raises:
        OSError: a process cannot write its part.
    """
    parts = folder.with_name(f".{folder.name}.parts")
    if parallel.rank() == 0:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
    parallel.barrier()
    arrays = {name: t.detach() for name, t in tensors.items() if t.dim()}
    writer = HuggingFaceStorageWriter(str(parts), save_distributed=True)
    try:
        dcp.save(arrays, storage_writer=writer)
    except CheckpointException as e:  # the same in every process, whichever of them it befell
        if parallel.rank() == 0:
            shutil.rmtree(parts, ignore_errors=True)
        raise os_error(next(iter(e.failures.values()))[0]) from e
    parallel.barrier()
    if parallel.rank() == 0:
        scalars = {name: float(t) for name, t in tensors.items() if not t.dim()}
        write_json(parts / "state.json", {**rest, "scalars": scalars})
        parts.rename(folder)
    parallel.barrier()


def read(
    folder: Path, like: Mapping[str, Tensor], scalars: Mapping[str, float], relaid: Relaid
) -> dict[str, Tensor]:
    """Reads a checkpoint, whoever wrote it: tensors as those of `like` are sliced, others whole.

    Args:
        relaid: how a whole tensor that others wrote is to be laid out, by its name; tensors that
            it leaves alone are read slice by slice.
    """
    found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty_like(like[name])
        if name in like and not relaid.changes(name)
        else torch.empty(held.size, dtype=held.properties.dtype)
        for name, held in found.items()
        if isinstance(held, TensorStorageMetadata)
    }
    dcp.load(
        tensors,
        storage_reader=HuggingFaceStorageReader(str(folder)),
        no_dist=parallel.world() == 1,
    )
    for name in tensors:
        if relaid.changes(name):
            tensors[name] = parallel.sliced(relaid(name, tensors[name]), like.get(name))
    return tensors | {name: torch.tensor(value) for name, value in scalars.items()}
