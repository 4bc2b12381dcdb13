"""Logits in float32 from states and a head in bfloat16.

torch's product on a CPU rounds what it gives to the precision of its factors: logits near 16 then
lie 0.125 apart, which alone moves log-probabilities by 0.02 on average (docs/lab-notebook.md). The
products of the factors are exact in float32, so it is enough to leave their sums as they are.

Shapes: M rows, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Parameter

from phikit.engine.native import products
from phikit.engine.native.build import Compiler, library

PACKED = 256  # rows for which laying the weights out pays


def head_product(weight_VD: Tensor, rows: int) -> Callable[[Tensor], Tensor] | None:
    """The product with a head's weights, [M, D] → [M, V] in float32; None where there is none but
    torch's: no compiler, or weights other than plain bfloat16 on the CPU.

    Args:
        rows: how many there will be in all. For many the weights are copied.
    """
    plain = type(weight_VD) in (Tensor, Parameter) and weight_VD.dtype == torch.bfloat16
    if not plain or weight_VD.device.type != "cpu" or weight_VD.shape[1] % 2:
        return None
    built = library(Compiler())
    if built is None:
        return None
    weight_VD = weight_VD.detach().contiguous()
    if rows >= PACKED:
        return products.PackedRows(built, weight_VD)
    v, d = weight_VD.shape
    matrix = products.matrix("bf16", v, d, weight_VD)
    threads = torch.get_num_threads()

    def product(x_MD: Tensor) -> Tensor:
        return products.rows(built, matrix, x_MD, threads, wide=True)

    product.__dict__["weight"] = weight_VD  # the matrix holds addresses alone
    return product
