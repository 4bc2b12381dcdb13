"""Where keys and values are kept while generating.

Shapes: F prompt slots, N row slots, G key-value heads, P and O positions, K head size.

A prompt's keys and values are stored once, in a prompt slot, however many samples grow from it;
each sample stores only what it generated itself, in a row slot. Slots in use are kept at the front
(0, 1, 2, ...), so that a step touches exactly them. Both stores are as long as the longest slot in
use needs and no longer: the matrix products read them whole, without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from phikit.models.decoder_config import DecoderConfig

_ALIGN = 32  # lengths step by this, so that matrix shapes repeat from step to step


def aligned(length: int) -> int:
    return -(-max(length, 1) // _ALIGN) * _ALIGN


class KVCache:
    """Attributes: prompts [layers, 2, F, G, P, K] and rows [layers, 2, N, G, O, K]; 2: k and v."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        shape = (config.layers, 2, 0, config.kv_heads, _ALIGN, config.head_dim)
        self.prompts = torch.zeros(shape, dtype=dtype, device=device)
        self.rows = torch.zeros(shape, dtype=dtype, device=device)

    def fit_prompts(self, slots: int, length: int) -> None:
        """Fits the store to this many prompt slots of this many positions."""
        self.prompts = _fitted(self.prompts, slots, length)

    def fit_rows(self, slots: int, length: int) -> None:
        """Fits the store to this many rows of this many generated positions."""
        self.rows = _fitted(self.rows, slots, length)

    def store_prompt(self, layer: int, slots: Tensor, k_FGLK: Tensor, v_FGLK: Tensor) -> None:
        length = k_FGLK.shape[2]
        self.prompts[layer, 0, slots, :, :length] = k_FGLK
        self.prompts[layer, 1, slots, :, :length] = v_FGLK

    def move_prompts(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies whole prompt slots."""
        self.prompts[:, :, list(target)] = self.prompts[:, :, list(source)]

    def move_rows(self, source: Sequence[int], target: Sequence[int], length: int) -> None:
        """Copies the first `length` positions of row slots."""
        head = self.rows[:, :, :, :, :length]
        head[:, :, list(target)] = head[:, :, list(source)]


def _fitted(store: Tensor, slots: int, length: int) -> Tensor:
    layers, two, old_slots, g, old_length, k = store.shape
    wanted = aligned(length)
    if slots <= old_slots and wanted <= old_length <= wanted + _ALIGN:
        return store
    new_slots = old_slots if slots <= old_slots else max(slots, 2 * old_slots)
    # zeros, because masked positions are multiplied by weight 0 and must be finite
    fitted = store.new_zeros(layers, two, new_slots, g, wanted, k)
    kept = min(wanted, old_length)
    fitted[:, :, :old_slots, :, :kept] = store[..., :kept, :]
    return fitted
