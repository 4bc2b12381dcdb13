"""Blocks of phi-4-mini-flash's one growing cache, in the model's precision or in 8 bits.

Shapes: T new positions, N rows, J blocks of a table, E key-value heads, P pairs of them, K head
size, V = 2 K, S positions of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phikit.engine.pool import zeros
from phikit.engine.pool8 import Store8, gathered, head_bytes
from phikit.models.flash.config import FlashConfig


class FlashPool:
    """Keys `k` [blocks, E, S, K] and values `v` [blocks, P, S, V]."""

    def __init__(
        self, config: FlashConfig, blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        e, k = config.kv_heads, config.head_dim
        self.size = size
        self.k = zeros((blocks, e, size, k), dtype, device)
        self.v = zeros((blocks, e // 2, size, 2 * k), dtype, device)

    @staticmethod
    def block_bytes(config: FlashConfig, size: int, dtype: torch.dtype) -> int:
        """What one block of so many positions takes."""
        return 2 * config.kv_heads * config.head_dim * size * dtype.itemsize

    @property
    def stores(self) -> tuple[Tensor, ...]:
        """The tensors that hold the blocks, in their first dimension."""
        return self.k, self.v

    def write(self, block_T: Tensor, at_T: Tensor, k_TEK: Tensor, v_TPV: Tensor) -> None:
        """Stores positions at their places in blocks."""
        self.k[block_T, :, at_T] = k_TEK
        self.v[block_T, :, at_T] = v_TPV

    def read(self, table_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """Tables of blocks, copied: [N, E, J × S, K] and [N, P, J × S, V]."""
        return gathered(self.k, table_NJ), gathered(self.v, table_NJ)

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies blocks, pair by pair."""
        for store in self.stores:
            store[list(target)] = store[list(source)]


class FlashPool8(FlashPool):
    """In 8 bits, as a `pool8.Store8`: keys of E heads, values of P pairs."""

    def __init__(
        self, config: FlashConfig, blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        e, k = config.kv_heads, config.head_dim
        self.size, self.dtype = size, dtype
        self._store = Store8(blocks, size, (e, k), (e // 2, 2 * k), device)

    @staticmethod
    def block_bytes(config: FlashConfig, size: int, dtype: torch.dtype) -> int:
        e, k = config.kv_heads, config.head_dim
        return e * head_bytes(size, k) + e // 2 * head_bytes(size, 2 * k)

    @property
    def stores(self) -> tuple[Tensor, ...]:
        return self._store.tensors

    def write(self, block_T: Tensor, at_T: Tensor, k_TEK: Tensor, v_TPV: Tensor) -> None:
        self._store.write(block_T, at_T, k_TEK, v_TPV)

    def read(self, table_NJ: Tensor) -> tuple[Tensor, Tensor]:
        return self._store.read(table_NJ, self.dtype)
