"""Attention confined to each document of a packed row.

Shapes: B rows, L sequence, H query heads, G key-value heads, K head size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from phikit.models.decoder import Attend

QUERY_BLOCK = 256


def confined(segments_BL: Tensor, branches_BL: Tensor | None = None) -> Attend:
    """What each position attends to: itself and the earlier positions of its own document.

    Args:
        segments_BL: the number of each position's document in its row.
        branches_BL: for a prompt with several continuations in one row: 0 for the prompt, which
            all of its document see; 1, 2, ... for the continuations, which see not each other.

    Padding is a document like any other (its number is 0), so no position attends to nothing.
    """
    if branches_BL is None and bool((segments_BL == segments_BL[:, :1]).all()):
        return _whole_rows
    length = segments_BL.shape[1]
    index = torch.arange(length, device=segments_BL.device)
    blocks: list[tuple[slice, Tensor]] = []
    for start in range(0, length, QUERY_BLOCK):
        queries, keys = (
            slice(start, min(start + QUERY_BLOCK, length)),
            slice(0, start + QUERY_BLOCK),
        )
        mask_BQL = segments_BL[:, queries, None] == segments_BL[:, None, keys]
        mask_BQL &= index[queries, None] >= index[keys]
        if branches_BL is not None:
            other_BQL = branches_BL[:, queries, None] != branches_BL[:, None, keys]
            mask_BQL &= ~(other_BQL & (branches_BL[:, None, keys] != 0))
        blocks.append((queries, mask_BQL[:, None]))

    def attend(_: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        q, k, v = q_BHLK.float(), k_BGLK.float(), v_BGLK.float()
        grouped = q.shape[1] != k.shape[1]
        out = [
            F.scaled_dot_product_attention(
                q[:, :, queries], k[:, :, : mask.shape[-1]], v[:, :, : mask.shape[-1]],
                attn_mask=mask, enable_gqa=grouped,
            )
            for queries, mask in blocks
        ]  # fmt: skip
        return torch.cat(out, dim=2).to(q_BHLK.dtype)

    return attend


def _whole_rows(_: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
    """Every row is one document."""
    # float32: torch's bf16 attention is a quarter slower than this on a CPU, and less exact
    return F.scaled_dot_product_attention(
        q_BHLK.float(), k_BGLK.float(), v_BGLK.float(),
        is_causal=True, enable_gqa=q_BHLK.shape[1] != k_BGLK.shape[1],
    ).to(q_BHLK.dtype)  # fmt: skip
