"""GPTQ: rounding weights one column after another, each error made up for by the columns to come.

Frantar et al. 2022 (arXiv 2210.17323). With H = XᵀX of a layer's inputs X, the error of a column is
spread over the columns not yet rounded so that the layer's output on X changes least. Columns of
large inputs come first; the scales of the groups are chosen before, so columns keep their places.

Shapes: N rows, K columns, S groups of a row, E columns of a group, T tokens, B columns of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from phikit.engine.logits import head_product
from phikit.engine.quant.packing import Scheme, choose_scales, round_to

_BLOCK = 128
_ROWS = 16_384  # rounded at once: rows do not depend on each other
_DAMPING = 0.01


class Inputs:
    """The second moment of a layer's inputs, gathered over batches: `H_KK` / `count`."""

    def __init__(self, width: int) -> None:
        self.sum_KK = torch.zeros(width, width)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Adds the inputs [..., K] of some positions."""
        x_KT = x.reshape(-1, x.shape[-1]).T.contiguous()
        # bfloat16 inputs are multiplied as they are: their products are exact in float32
        product = head_product(x_KT, len(x_KT))
        if product is not None:
            self.sum_KK += product(x_KT)
        else:
            self.sum_KK.addmm_(x_KT.float(), x_KT.T.float())
        self.count += x_KT.shape[1]

    @property
    def moment_KK(self) -> Tensor:
        """The mean of x xᵀ over all positions: GPTQ's Hessian up to a factor."""
        return self.sum_KK / max(1, self.count)


def quantise(w_NK: Tensor, scheme: Scheme, moment_KK: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds a matrix so that its products with such inputs change least.

    Returns:
        int8 [N, K], bfloat16 scales [N, S].
    """
    n, k = w_NK.shape
    power_K = moment_KK.diagonal().clone()
    order_K = power_K.argsort(descending=True)
    factor_KK = _factor(moment_KK[order_K][:, order_K])
    groups = scheme.scale_groups(k)
    importance_SE = power_K.clamp(min=1e-12).view(groups, -1)
    q_NK, scale_NS = torch.empty(n, k, dtype=torch.int8), torch.empty(n, groups)
    scale_NS = scale_NS.to(torch.bfloat16)
    for start in range(0, n, _ROWS):
        rows = slice(start, start + _ROWS)
        w = w_NK[rows].float()
        scale_NS[rows] = choose_scales(w.view(len(w), groups, -1), scheme.kind, importance_SE)
        per_column = scale_NS[rows].float().repeat_interleave(k // groups, dim=1)[:, order_K]
        q_NK[rows, order_K] = _round_columns(w[:, order_K], per_column, factor_KK, scheme.kind)
    return q_NK, scale_NS


def _factor(moment_KK: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped moment's inverse: row i says how an error of column
    i goes to the columns after it."""
    h = moment_KK.clone()
    # a column whose input is always zero has no say: any rounding of it is right
    h.diagonal()[h.diagonal() == 0] = 1.0
    h.diagonal().add_(_DAMPING * h.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(h))
    return torch.linalg.cholesky(inverse, upper=True)


def _round_columns(w_NK: Tensor, scale_NK: Tensor, factor_KK: Tensor, kind: str) -> Tensor:
    # columns become rows: what is worked on is contiguous
    w_KN, scale_KN = w_NK.T.contiguous(), scale_NK.T.contiguous()
    q_KN = torch.empty_like(w_KN)
    k = w_KN.shape[0]
    for first in range(0, k, _BLOCK):
        last = min(first + _BLOCK, k)
        error_BN = torch.empty_like(w_KN[first:last])
        for i in range(first, last):
            q_KN[i] = round_to(w_KN[i], scale_KN[i], kind)
            error_BN[i - first] = (w_KN[i] - q_KN[i] * scale_KN[i]) / factor_KK[i, i]
            w_KN[i + 1 : last].addr_(factor_KK[i, i + 1 : last], error_BN[i - first], alpha=-1)
        w_KN[last:].addmm_(factor_KK[first:last, last:].T, error_BN, alpha=-1)
    return q_KN.T.to(torch.int8)
