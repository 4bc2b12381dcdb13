"""Keys and values in 8 bits, as the kernels read them (native/attend8.h).

Shapes: P blocks, G key-value heads (H of values), S positions of a block, K size of a key, V of a
value, T tokens, J blocks of a table.

A vector x becomes integers of -127 to 127, stored + 128, and the float32 scale max|x| / 127. The
kernels take them as they are; prompts that go on from a cached part unpack it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phikit.engine.pool import zeros
from phikit.errors import PhikitError
from phikit.models.decoder_config import DecoderConfig

_LANES, _WIDEST = 16, 256  # of attend8.h
_LEAST = 1e-30  # a scale below it: smaller than any number of a model, so 0


def head_bytes(size: int, width: int) -> int:
    """Memory of one head's keys, or values, of a block."""
    return size * (width + 4)


def block_bytes8(config: DecoderConfig, size: int) -> int:
    """Memory of one block over all layers."""
    return 2 * config.layers * config.kv_heads * head_bytes(size, config.head_dim)


def narrow(x_TGK: Tensor) -> tuple[Tensor, Tensor]:
    """Integers + 128 [T, G, K], and scales [T, G]."""
    wide = x_TGK.float()
    scale_TG = wide.abs().amax(-1) / 127
    whole = (wide / scale_TG[..., None].clamp(min=_LEAST)).round()
    return (whole + 128).to(torch.uint8), scale_TG


class Store8:
    """Keys and values of one layer.

    Attributes:
        k: [P, G, K / 4, S, 4]; k_scale: [P, G, S].
        v: [P, H, S / 4, V, 4]; v_scale: [P, H, S].

    Raises:
        PhikitError: S or K is no multiple of 16, or K is above 256.
    """

    def __init__(
        self, blocks: int, size: int, keys: tuple[int, int], values: tuple[int, int],
        device: torch.device,
    ) -> None:  # fmt: skip
        (g, k), (h, v) = keys, values
        if size % _LANES or k % _LANES or v % _LANES or k > _WIDEST:
            raise PhikitError(
                f"a cache of 8 bits cannot hold blocks of {size} or heads of {k}: multiples of "
                f"{_LANES} fit, heads of at most {_WIDEST}",
                "leave it in bfloat16",
            )
        self.k = zeros((blocks, g, k // 4, size, 4), torch.uint8, device)
        self.v = zeros((blocks, h, size // 4, v, 4), torch.uint8, device)
        self.k_scale = zeros((blocks, g, size), torch.float32, device)
        self.v_scale = zeros((blocks, h, size), torch.float32, device)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """In the order of the kernels."""
        return self.k, self.v, self.k_scale, self.v_scale

    def write(self, block_T: Tensor, at_T: Tensor, k_TGK: Tensor, v_THV: Tensor) -> None:
        """Stores positions at their places in blocks."""
        whole_TGK, self.k_scale[block_T, :, at_T] = narrow(k_TGK)
        self.k.permute(0, 3, 1, 2, 4)[block_T, at_T] = whole_TGK.unflatten(2, (-1, 4))
        whole_THV, self.v_scale[block_T, :, at_T] = narrow(v_THV)
        self.v.permute(0, 2, 4, 1, 3)[block_T, at_T // 4, at_T % 4] = whole_THV

    def read(self, table_NJ: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tables of blocks, unpacked: [N, G, J × S, K] and [N, H, J × S, V]."""
        k, v = self.k.transpose(2, 3).flatten(3), self.v.transpose(3, 4).flatten(2, 3)
        return _read(k, self.k_scale, table_NJ, dtype), _read(v, self.v_scale, table_NJ, dtype)


def _read(store: Tensor, scale: Tensor, table_NJ: Tensor, dtype: torch.dtype) -> Tensor:
    whole = gathered(store, table_NJ).float() - 128
    return (whole * gathered(scale[..., None], table_NJ)).to(dtype)


def gathered(store: Tensor, table_NJ: Tensor) -> Tensor:
    """[P, G, S, X] of tables of blocks, copied: [N, G, J × S, X]."""
    found = store.index_select(0, table_NJ.flatten()).view(*table_NJ.shape, *store.shape[1:])
    return found.transpose(1, 2).flatten(2, 3)


class Pool8:
    """In the place of `pool.Pool`.

    Attributes:
        stores: of each layer.
    """

    strides = (0, 0, 0)  # the kernels know them

    def __init__(self, config: DecoderConfig, blocks: int, size: int) -> None:
        head, cpu = (config.kv_heads, config.head_dim), torch.device("cpu")
        self.size = size
        self.stores = [Store8(blocks, size, head, head, cpu) for _ in range(config.layers)]
        self.layers = [store.tensors for store in self.stores]

    def places(self, block_T: Tensor, offset_T: Tensor) -> Tensor:
        """Where `write` puts the heads of tokens: [2, T]."""
        return torch.stack((block_T, offset_T))

    def write(self, layer: int, places: Tensor, k_TGK: Tensor, v_TGK: Tensor) -> None:
        self.stores[layer].write(places[0], places[1], k_TGK, v_TGK)

    def read(self, layer: int, table_BJ: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values of tables of blocks in bfloat16: each [B, G, J × S, K]."""
        return self.stores[layer].read(table_BJ, torch.bfloat16)

    def copy(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies blocks, in all layers."""
        for layer in self.layers:
            for store in layer:
                store[list(target)] = store[list(source)]
