"""What `invariant` does where there are no C kernels: torch, one row at a time.

torch chooses how to add up by the shapes that it is given, and treats the end of a tensor in
another way than its middle. So each row is given to it alone, from memory of its own, and products
get blocks of one size; whether a row's place in such a block matters is tried out beforehand.

Shapes: M rows, D model width, F inner width, H query heads, G key-value heads, E = H / G, K head
size (columns, in products), L positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.engine.packed import Product
from phikit.engine.pool import Pool
from phikit.models.decoder_config import DecoderConfig

_BLOCK = 16  # rows of a product


def each(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The function of every row by itself."""
    rows = zip(*(t.split(1) for t in tensors), strict=True)
    return torch.cat([function(*(t.clone() for t in row)) for row in rows])


def blockwise(module: nn.Module) -> Product:
    """The module's product in blocks of rows of one size, or row by row where the place of a row in
    a block, or what else is in it, makes a difference."""

    def blocks(x_MK: Tensor) -> Tensor:
        short = -len(x_MK) % _BLOCK
        parts = F.pad(x_MK, (0, 0, 0, short)).split(_BLOCK)
        return torch.cat([module(p.clone()) for p in parts])[: len(x_MK)]

    tried: list[Product] = []

    def product(x_MK: Tensor) -> Tensor:
        if not tried:
            tried.append(blocks if _even(module, x_MK) else lambda x: each(module, x))
        return tried[0](x_MK)

    return product


def _even(module: nn.Module, like_MK: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    x_MK = torch.randn(_BLOCK, like_MK.shape[1], generator=generator).to(like_MK.dtype)
    y_MN = module(x_MK)
    for row in (0, _BLOCK // 2 + 1, _BLOCK - 1):
        if not bool((module(x_MK[row : row + 1].repeat(_BLOCK, 1)) == y_MN[row]).all()):
            return False
    return torch.equal(module(x_MK.flip(0)).flip(0), y_MN)


class Rowwise:
    """In the place of `native.between.Between`."""

    def __init__(self, config: DecoderConfig) -> None:
        self.config = config

    def norm(self, x_MD: Tensor, add_MD: Tensor | None, weight_D: Tensor) -> Tensor:
        """Adds to x (float32) in place; returns x / rms(x) × weight in the weight's precision."""
        if add_MD is not None:
            x_MD += add_MD
        wide_D, eps = weight_D.float(), self.config.norm_eps
        return each(lambda x: F.rms_norm(x, wide_D.shape, wide_D, eps), x_MD).to(weight_D.dtype)

    def gate(self, both_MF2: Tensor) -> Tensor:
        """silu(gate) × up: [M, F]."""
        gate_MF, up_MF = both_MF2.chunk(2, dim=-1)
        return each(F.silu, gate_MF) * up_MF

    def attending(
        self, pool: Pool, table_MT: Tensor, position_M: Tensor, rope: tuple[Tensor, Tensor]
    ) -> Callable[[int, Tensor], Tensor]:
        """As `native.between.Attending`."""
        config = self.config
        h, g, k, r = config.heads, config.kv_heads, config.head_dim, config.rotary_dim
        cos_M1R, sin_M1R = rope
        window = config.sliding_window or 0
        window = window if window < config.max_positions else 0
        at_M = position_M.long()
        block_M = table_MT.long().gather(1, (at_M // pool.size)[:, None])[:, 0]
        places = pool.places(block_M, at_M % pool.size)

        def turn(x: Tensor) -> Tensor:
            head = x[..., :r]
            half = torch.cat((head[..., r // 2 :], head[..., : r // 2]), -1)
            return torch.cat((head * cos_M1R + half * sin_M1R, x[..., r:]), -1)

        def attend(layer: int, qkv: Tensor) -> Tensor:
            m = len(qkv)
            q_MHK, k_MGK, v_MGK = qkv.view(m, h + 2 * g, k).split((h, g, g), 1)
            q_MHK = turn(q_MHK)
            pool.write(layer, places, turn(k_MGK), v_MGK)
            out = []
            for row, last in enumerate(at_M.tolist()):
                table = table_MT[row : row + 1, : last // pool.size + 1].long()
                first = max(0, last + 1 - window) if window else 0
                keys, values = (t[0, :, first : last + 1].clone() for t in pool.read(layer, table))
                q = q_MHK[row].clone().view(g, h // g, k)
                score_GEL = (q.float() @ keys.float().transpose(1, 2)) * k**-0.5
                weight_GEL = torch.softmax(score_GEL, -1)
                out.append((weight_GEL @ values.float()).to(qkv.dtype).view(1, h * k))
            return torch.cat(out)

        return attend
