"""An answer to one prompt with pictures and sound: greedy, with a cache of keys and values.

Shapes: B = 1 row, L new positions, P all positions so far, D model width, H query heads,
G key-value heads, K head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from phikit.models.decoder import rope_tables
from phikit.models.multimodal.media import Media
from phikit.models.multimodal.model import Phi4MM


class _Cache:
    """Keys and values of one sequence; called by the layers in the place of `attend`."""

    def __init__(self) -> None:
        self.stored: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, layer: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        first = layer not in self.stored
        if not first:
            old_k, old_v = self.stored[layer]
            k_BGLK, v_BGLK = torch.cat((old_k, k_BGLK), 2), torch.cat((old_v, v_BGLK), 2)
        self.stored[layer] = k_BGLK, v_BGLK
        return F.scaled_dot_product_attention(
            q_BHLK, k_BGLK, v_BGLK, is_causal=first, enable_gqa=q_BHLK.shape[1] != k_BGLK.shape[1]
        )


@torch.inference_mode()
def generate(
    model: Phi4MM,
    ids: Sequence[int],
    media: Media | None = None,
    max_tokens: int = 256,
    stop_ids: Sequence[int] = (),
) -> Iterator[int]:
    """Yields the likeliest next token until a stop token, which is the last one yielded.

    When the sequence outgrows the length up to which LongRoPE's short factors hold, everything so
    far is computed anew with the long ones, as a fresh prompt would be.

    Raises:
        PhikitError: the placeholder tokens are not those of the media.
    """
    device = model.lm_head.weight.device
    ids_1L = torch.tensor([list(ids)], device=device)
    modes = model.modes_of(ids_1L)
    x_1LD = model.embed(ids_1L, media or Media())
    long = model.config.long_rope
    original = long.original_max_positions if long else model.config.max_positions
    cache, known = _Cache(), 0
    for _ in range(min(max_tokens, model.config.max_positions - len(ids))):
        length = x_1LD.shape[1]
        if known <= original < length:
            cache, known = _Cache(), 0
        position_1L = torch.arange(known, length, device=device)[None]
        rope = rope_tables(model.config, position_1L, length)
        state_1LD = model.hidden_of(x_1LD[:, known:], rope, modes, cache)
        known = length
        token = int(model.lm_head(state_1LD[:, -1]).argmax())
        yield token
        if token in stop_ids:
            return
        new_11D = model.model.embed_tokens(torch.tensor([[token]], device=device))
        x_1LD = torch.cat((x_1LD, new_11D), dim=1)
