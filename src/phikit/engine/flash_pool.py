"""Blocks of phi-4-mini-flash's one growing cache, in the model's precision or in 8 bits.

Shapes: T new positions, N rows, J blocks of a table, E key-value heads, P pairs of them, K head
size, V = 2 K, S positions of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phikit.engine.pool import zeros
from phikit.errors import PhikitError
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
        return 2 * config.kv_heads * config.head_dim * size * dtype.itemsize

    @property
    def stores(self) -> tuple[Tensor, ...]:
        return self.k, self.v

    def write(self, block_T: Tensor, at_T: Tensor, k_TEK: Tensor, v_TPV: Tensor) -> None:
        """Stores positions at their places in blocks."""
        self.k[block_T, :, at_T] = k_TEK
        self.v[block_T, :, at_T] = v_TPV

    def read(self, table_NJ: Tensor) -> tuple[Tensor, Tensor]:
        """Tables of blocks, copied: [N, E, J × S, K] and [N, P, J × S, V]."""
        return _gathered(self.k, table_NJ), _gathered(self.v, table_NJ)

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        for store in self.stores:
            store[list(target)] = store[list(source)]


class FlashPool8(FlashPool):
    """In 8 bits, laid out for integer dot products (native/differ8.c): integers + 128.

    Keys `k` [blocks, E, K / 4, S, 4] with `k_scale` [blocks, E, S], values `v` [blocks, P, S / 4,
    V, 4] with `v_scale` [blocks, P, S].
    """

    def __init__(
        self, config: FlashConfig, blocks: int, size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        e, k = config.kv_heads, config.head_dim
        if size % 16 or k % 16:
            raise PhikitError(f"a cache in 8 bits cannot hold blocks of {size} or heads of {k}")
        self.size, self.dtype = size, dtype
        self.k = zeros((blocks, e, k // 4, size, 4), torch.uint8, device)
        self.v = zeros((blocks, e // 2, size // 4, 2 * k, 4), torch.uint8, device)
        self.k_scale = zeros((blocks, e, size), torch.float32, device)
        self.v_scale = zeros((blocks, e // 2, size), torch.float32, device)

    @staticmethod
    def block_bytes(config: FlashConfig, size: int, dtype: torch.dtype) -> int:
        e, k = config.kv_heads, config.head_dim
        return size * (2 * e * k + 4 * e + 4 * (e // 2))

    @property
    def stores(self) -> tuple[Tensor, ...]:
        return self.k, self.v, self.k_scale, self.v_scale

    def write(self, block_T: Tensor, at_T: Tensor, k_TEK: Tensor, v_TPV: Tensor) -> None:
        q_TEK, self.k_scale[block_T, :, at_T] = _squeezed(k_TEK)
        self.k.permute(0, 3, 1, 2, 4)[block_T, at_T] = q_TEK.unflatten(2, (-1, 4))
        q_TPV, self.v_scale[block_T, :, at_T] = _squeezed(v_TPV)
        self.v.permute(0, 2, 4, 1, 3)[block_T, at_T // 4, at_T % 4] = q_TPV

    def read(self, table_NJ: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.k.transpose(2, 3).flatten(3), self.v.transpose(3, 4).flatten(2, 3)
        found = []
        for store, scale in ((k, self.k_scale), (v, self.v_scale)):
            whole = _gathered(store, table_NJ).float() - 128
            found.append((whole * _gathered(scale[..., None], table_NJ)).to(self.dtype))
        return found[0], found[1]


def _squeezed(x_THK: Tensor) -> tuple[Tensor, Tensor]:
    """Integers + 128 [T, H, K], and scales [T, H]."""
    wide = x_THK.float()
    scale_TH = wide.abs().amax(-1) / 127
    whole = (wide / scale_TH[..., None].clamp(min=1e-30)).round()
    return (whole + 128).to(torch.uint8), scale_TH


def _gathered(store: Tensor, table_NJ: Tensor) -> Tensor:
    found = store.index_select(0, table_NJ.flatten()).view(*table_NJ.shape, *store.shape[1:])
    return found.transpose(1, 2).flatten(2, 3)
