"""The keys and values themselves: one pool of blocks per layer.

Shapes: P blocks, G key-value heads, S positions of a block, K head size, T tokens.

The pool is as large as it may ever become, but memory is only touched where blocks have been in
use. Blocks start as zeros, because positions that are masked are multiplied by weight 0 and must be
finite; block 0 stays zero.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from phikit.models.decoder_config import DecoderConfig


def block_bytes(config: DecoderConfig, dtype: torch.dtype, size: int) -> int:
    """Memory of one block over all layers."""
    return 2 * config.layers * config.kv_heads * config.head_dim * size * dtype.itemsize


def available_memory() -> int:
    """Bytes that this machine could still give; 0 when that is not known."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields.get("MemAvailable", "0").split()[0]) * 1024


class Pool:
    """Attributes: k, v: per layer, [P, G, S, K]; layers: both of each layer, for the kernels."""

    def __init__(
        self,
        config: DecoderConfig,
        blocks: int,
        size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (blocks, config.kv_heads, size, config.head_dim)
        self.size, self.kv_heads, self.head_dim = size, config.kv_heads, config.head_dim
        self.k = [zeros(shape, dtype, device) for _ in range(config.layers)]
        self.v = [zeros(shape, dtype, device) for _ in range(config.layers)]
        self.layers: list[tuple[Tensor, ...]] = list(zip(self.k, self.v, strict=True))
        self._head_G = torch.arange(config.kv_heads, device=device) * size

    @property
    def strides(self) -> tuple[int, int, int]:
        """From block to block, head to head, position to position."""
        block, head, position, _ = self.k[0].stride()
        return block, head, position

    def places(self, block_T: Tensor, offset_T: Tensor) -> Tensor:
        """Where `write` puts the heads of tokens: [T × G]."""
        first_T1 = (block_T * (self.kv_heads * self.size) + offset_T)[:, None]
        return (first_T1 + self._head_G).flatten()

    def write(self, layer: int, places: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> None:
        """Stores the keys and values of tokens at their `places`."""
        width = self.head_dim
        self.k[layer].view(-1, width).index_copy_(0, places, k_TGK.reshape(-1, width))
        self.v[layer].view(-1, width).index_copy_(0, places, v_TGK.reshape(-1, width))

    def read(self, layer: int, table_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of tables of blocks, copied: each [B, G, J × S, K]."""

        def rows(store: Tensor) -> Tensor:
            found = store.index_select(0, table_BJ.flatten())
            found = found.view(*table_BJ.shape, *store.shape[1:]).transpose(1, 2)
            return found.reshape(table_BJ.shape[0], self.kv_heads, -1, self.head_dim)

        return rows(self.k[layer]), rows(self.v[layer])

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies blocks, in all layers."""
        for store in (*self.k, *self.v):
            store[list(target)] = store[list(source)]


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros that take memory only where they are touched.

    The kernel maps them anew each time, zeroes page by page at the first touch, and takes them back
    at the end. A heap that keeps what was freed (`phikit.memory.keep_freed_memory`) would hand out
    used memory and clear all of it: the second pool of a process would be touched whole.
    """
    count = int(np.prod(shape)) * dtype.itemsize
    if device.type != "cpu" or not count:
        return torch.zeros(shape, dtype=dtype, device=device)
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return torch.zeros(shape, dtype=dtype)
    mapped = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(mapped, dtype=dtype).view(shape)
