"""Context parallelism from outside the model: a long row's tokens shared by several processes.

Shapes: B rows, L sequence, T = B·L tokens, N = T / C tokens of one of C processes, D model width,
H query heads, G key-value heads, M = H + 2G, K head size.

Everything but attention is a function of single tokens. For attention the processes trade places:
each gives the others its tokens' heads and gets the whole row for its own share of the heads
(Jacobs et al. 2023, "DeepSpeed Ulysses"), so attention confined to documents is computed by the
very code of one process, with equal work for all. Heads must divide among the processes.

The final hidden states are gathered, and every process computes the whole loss, which counts a
C-th in each: objectives need not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from phikit.models.decoder import Attend, Decoder, rope_tables
from phikit.train.attention import Confined, Rope

Group = Any  # a process group


class Traded(Confined):
    """`Confined` over rows whose tokens several processes share."""

    def __init__(self, whole: Confined, rope: Rope, tokens: int, group: Group) -> None:
        super().__init__(whole.documents)
        self.whole, self.rope, self.tokens, self.group = whole, rope, tokens, group

    def fused(self, qkv_BLMK: Tensor, rope: Rope, heads: int, kv_heads: int) -> Tensor:
        ways = self.group.size()
        mine_1TMK = self._traded(qkv_BLMK, (heads, kv_heads, kv_heads))
        out = self.whole.fused(mine_1TMK, self.rope, heads // ways, kv_heads // ways)
        return self._back(out)

    def __call__(self, layer: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        sizes = [x.shape[1] for x in (q_BHLK, k_BGLK, v_BGLK)]
        qkv_BLMK = torch.cat((q_BHLK, k_BGLK, v_BGLK), dim=1).transpose(1, 2)
        mine_1MTK = self._traded(qkv_BLMK, sizes).transpose(1, 2)
        own = mine_1MTK.split([n // self.group.size() for n in sizes], dim=1)
        out_1HTK = self.whole(layer, *own)
        return self._back(out_1HTK.transpose(1, 2)).transpose(1, 2)

    def _traded(self, qkv_BLMK: Tensor, sizes: Sequence[int]) -> Tensor:
        """[1, N, M, K], this process's tokens, to [1, T, M / C, K], its share of the heads."""
        ways = self.group.size()
        shares = [part.unflatten(1, (ways, -1)) for part in qkv_BLMK[0].split(sizes, dim=1)]
        send_CNMK = torch.cat(shares, dim=2).transpose(0, 1).contiguous()
        mine_TMK = _Trade.apply(send_CNMK, self.group).flatten(0, 1)
        return mine_TMK[None, : self.tokens]

    def _back(self, out_1THK: Tensor) -> Tensor:
        """[1, T, H / C, K] to [1, N, H, K]."""
        ways = self.group.size()
        padding = -out_1THK.shape[1] % ways
        out_CNHK = F.pad(out_1THK[0], (0, 0, 0, 0, 0, padding)).unflatten(0, (ways, -1))
        back_CNHK = _Trade.apply(out_CNHK.contiguous(), self.group)
        return back_CNHK.transpose(0, 1).flatten(1, 2).contiguous()[None]


class _Trade(Function):
    """Part c of the first dimension goes to process c, whose part comes in its place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Trade.apply(grads[0].contiguous(), ctx.group), None


class _Gather(Function):
    """[N, D] of each process, one after the other, as [B, L, D]; the way back sums over them."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, shape: tuple[int, int], group: Group) -> Tensor:
        ctx.group, ctx.rows = group, len(x_ND)
        parts = [torch.empty_like(x_ND) for _ in range(group.size())]
        dist.all_gather(parts, x_ND.contiguous(), group=group)
        # a copy, for FSDP wants the model's output to be no view of another tensor
        return torch.cat(parts)[: shape[0] * shape[1]].unflatten(0, shape).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ways, me = ctx.group.size(), ctx.group.rank()
        grad_TD = grads[0].flatten(0, 1)
        whole_TD = F.pad(grad_TD, (0, 0, 0, ctx.rows * ways - len(grad_TD))).contiguous()
        dist.all_reduce(whole_TD, group=ctx.group)
        return whole_TD[ctx.rows * me : ctx.rows * (me + 1)], None, None


def share_rows(model: Decoder, group: Group) -> None:
    """From now on `model.hidden` shares a row's tokens among the processes of the group."""
    one = model.hidden
    ways, me = group.size(), group.rank()

    def hidden(
        ids_BL: Tensor, positions_BL: Tensor | None = None, attend: Attend | None = None
    ) -> Tensor:
        b, n = ids_BL.shape
        if positions_BL is None:
            positions_BL = torch.arange(n, device=ids_BL.device)[None]
        assert isinstance(attend, Confined), "objectives attend within documents"
        ids_T, positions_T = ids_BL.reshape(-1), positions_BL.expand(b, n).reshape(-1)
        length = int(positions_T.max()) + 1  # of the whole row: what LongRoPE goes by
        each = -(-b * n // ways)
        mine = slice(each * me, each * (me + 1))
        ids_1N, positions_1N = (
            F.pad(x_T, (0, each * ways - b * n))[mine][None] for x_T in (ids_T, positions_T)
        )
        rope = rope_tables(model.config, positions_T[None], length)
        traded = Traded(attend, rope, b * n, group)
        local_1ND = one(ids_1N, positions_1N, attend=traded, rope_length=length)
        return _Gather.apply(local_1ND[0], (b, n), group)

    model.hidden = hidden  # type: ignore[method-assign, assignment]
