"""When weights are laid out anew for the products to come, and how torch does it.

Shapes: M rows, N rows of a weight matrix, K its columns.

torch's bfloat16 product on a CPU brings the weights into the kernel's order anew at every call. For
8 to 128 rows of a small model that is a third to a half of its time. The C kernels have an order
of their own (`native.products.PackedRows`), which is the faster one with any number of rows; where
they do not run a model, with adapters or without a compiler, torch's is taken. The price is one
pass over the weights and a second copy of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from phikit.engine.pool import available_memory

Product = Callable[[Tensor], Tensor]

ROWS = 12  # with fewer, reading a large model's weights takes as long in any order
SMALL = 1 << 30  # bytes of weights that are small
STEPS = 24  # after so many steps the packing has paid for itself, with a margin
_SPARE = 2.0  # times the copy's size that must be free


def worth_packing(model: nn.Module, rows: int, steps: int, kernels: bool = False) -> bool:
    """Whether packing pays, when so many steps of about so many rows are to come: for bfloat16 on a
    CPU that can do it, with memory to spare. In the C kernels' order (`kernels`) it pays with few
    rows of a small model, too."""
    weights = [m.weight for m in model.modules() if type(m) is nn.Linear]
    size = sum(w.numel() * w.element_size() for w in weights)
    return (
        (rows >= ROWS or (kernels and size <= SMALL))
        and steps >= STEPS
        and bool(weights)
        and all(w.dtype == torch.bfloat16 and w.device.type == "cpu" for w in weights)
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        and _SPARE * size < available_memory()
    )


def packed(module: nn.Module, rows: int) -> Product:
    """The module's product with packed weights; the module itself when it is no plain matrix.

    Args:
        rows: how many rows most products will have.
    """
    if type(module) is not nn.Linear or module.weight.dtype != torch.bfloat16:
        return module
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), rows)
    bias = None if module.bias is None else module.bias.detach()

    def product(x_MK: Tensor) -> Tensor:
        y_MN: Tensor = torch.ops.mkldnn._linear_pointwise(x_MK, weight, bias, "none", [], "")
        return y_MN

    return product
