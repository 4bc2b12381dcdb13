"""Keys and values in 8 bits: one scale for each vector, that is, per head and token.

Shapes: P blocks, G key-value heads, S positions of a block, K head size, T tokens, J blocks of a
table.

A vector x becomes integers of -127 to 127 and the scale max|x| / 127 in bfloat16, rounded up. The
kernels of native/cache8.c read them as they are; prompts that go on from a cached part unpack it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phikit.engine.pool import zeros
from phikit.models.decoder_config import DecoderConfig


def block_bytes8(config: DecoderConfig, size: int) -> int:
    """Memory of one block over all layers."""
    return 2 * config.layers * config.kv_heads * (config.head_dim + 2) * size


def narrow(x_TGK: Tensor) -> tuple[Tensor, Tensor]:
    """Integers [T, G, K] and scales [T, G]."""
    wide = x_TGK.float()
    largest_TG = wide.abs().amax(-1)
    scale_TG = (largest_TG / 127).to(torch.bfloat16)
    raised = (scale_TG.view(torch.int16) + 1).view(torch.bfloat16)
    scale_TG = torch.where(scale_TG.float() * 127 < largest_TG, raised, scale_TG)
    inverse_TG = torch.where(largest_TG > 0, 1 / scale_TG.float(), 0.0)
    whole = (wide * inverse_TG[..., None]).round().clamp(-127, 127)
    return whole.to(torch.int8), scale_TG


class Pool8:
    """In the place of `pool.Pool`.

    Attributes:
        k, v: per layer, [P, G, S, K]: keys as integer + 128 in uint8, values as int8.
        k_scale, v_scale: per layer, [P, G, S].
    """

    def __init__(self, config: DecoderConfig, blocks: int, size: int) -> None:
        shape, cpu = (blocks, config.kv_heads, size, config.head_dim), torch.device("cpu")
        self.size, self.kv_heads, self.head_dim = size, config.kv_heads, config.head_dim

        def stores(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
            return [zeros(shape, dtype, cpu) for _ in range(config.layers)]

        self.k, self.v = stores(shape, torch.uint8), stores(shape, torch.int8)
        self.k_scale, self.v_scale = (stores(shape[:3], torch.bfloat16) for _ in range(2))
        self._head_G = torch.arange(config.kv_heads) * size

    def addresses(self, layer: int) -> tuple[int, ...]:
        """What the kernels are given of a layer."""
        stores = (self.k, self.v, self.k_scale, self.v_scale)
        return tuple(s[layer].data_ptr() for s in stores)

    def places(self, block_T: Tensor, offset_T: Tensor) -> Tensor:
        """Where `write` puts the heads of tokens: [T × G]."""
        first_T1 = (block_T * (self.kv_heads * self.size) + offset_T)[:, None]
        return (first_T1 + self._head_G).flatten()

    def write(self, layer: int, places: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> None:
        for store, scales, x in (
            (self.k, self.k_scale, k_TGK), (self.v, self.v_scale, v_TGK)
        ):  # fmt: skip
            whole, scale = narrow(x)
            if store is self.k:
                whole = (whole.to(torch.int16) + 128).to(torch.uint8)
            store[layer].view(-1, self.head_dim).index_copy_(0, places, whole.flatten(0, 1))
            scales[layer].view(-1).index_copy_(0, places, scale.flatten())

    def read(self, layer: int, table_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of tables of blocks in bfloat16: each [B, G, J × S, K]."""

        def rows(store: Tensor, scales: Tensor, offset: int) -> Tensor:
            blocks = table_BJ.flatten()
            found = store.index_select(0, blocks).float() - offset
            found = (found * scales.index_select(0, blocks).float()[..., None]).bfloat16()
            found = found.view(*table_BJ.shape, *store.shape[1:]).transpose(1, 2)
            return found.reshape(table_BJ.shape[0], self.kv_heads, -1, self.head_dim)

        return (
            rows(self.k[layer], self.k_scale[layer], 128),
            rows(self.v[layer], self.v_scale[layer], 0),
        )

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies blocks, in all layers."""
        for store in (*self.k, *self.v, *self.k_scale, *self.v_scale):
            store[list(target)] = store[list(source)]
