"""Products with the weights' several layouts, and their unpacking, by the C kernels.

Shapes: M rows of activations, N rows of a weight matrix, K columns, S scales per row.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from phikit.engine.native.build import Matrix
from phikit.errors import PhikitError

#: Rows of activations that the kernels take at once.
MOST_ROWS = 16
#: Weight rows that lie side by side.
LANES = 16
KINDS = {"bf16": 0, "int8": 1, "int4": 2, "f32": 3, "packed": 4}
#: Weight rows of a panel of packed weights.
PANEL = 64
_ROW_TILE = 16  # the most that ROW_TILE of common.h may be


def matrix(
    kind: str, n: int, k: int, data: Tensor, scales: Tensor | None = None, group: int = 32
) -> Matrix:
    """The C view of a matrix. It holds addresses: the tensors must outlive it.

    Args:
        kind: of `KINDS`; the layouts are in common.h.
        group: columns over which the activations share a scale; the weights too, unless `scales`
            has one per row.
    """
    tensors = [data] if scales is None else [data, scales]
    if any(not t.is_contiguous() or t.device.type != "cpu" for t in tensors):
        raise PhikitError("the kernels take contiguous tensors on the CPU")
    scale_groups = 1 if scales is None else scales.shape[1]
    return Matrix(
        KINDS[kind], n, k, group, scale_groups, 0,
        data.data_ptr(), 0 if scales is None else scales.data_ptr(),
    )  # fmt: skip


def linear(library: ctypes.CDLL, weight: Matrix, x_MK: Tensor, threads: int) -> Tensor:
    """x · wᵀ of bfloat16 or float32: [M, N] in x's precision.

    With integer weights, what a row gives depends on nothing but the row.
    """
    m = x_MK.shape[0]
    if x_MK.shape[1] != weight.k:
        raise PhikitError(f"{tuple(x_MK.shape)} does not fit [rows, {weight.k}]")
    x_MK = x_MK.contiguous()
    y_MN = x_MK.new_empty(m, weight.n)
    wide = int(x_MK.dtype == torch.float32)
    failed = library.phikit_linear(weight, x_MK.data_ptr(), wide, m, y_MN.data_ptr(), threads)
    if failed:
        raise PhikitError(f"no memory for a product of {m} rows with [{weight.n}, {weight.k}]")
    return y_MN


def rows(
    library: ctypes.CDLL, weight: Matrix, x_MK: Tensor, threads: int, wide: bool = False
) -> Tensor:
    """x · wᵀ for any number of rows: what a row gives depends on nothing but the row.

    Args:
        x_MK: bfloat16, or float32 with weights that are not bfloat16.
        wide: give float32; else [M, N] comes in x's precision.
    """
    integers = weight.kind in (1, 2)
    x_MK = (x_MK.float() if integers and wide else x_MK).contiguous()
    right = integers or x_MK.dtype == (torch.float32 if weight.kind == 3 else torch.bfloat16)
    if x_MK.shape[1] != weight.k or not right:
        raise PhikitError(f"{tuple(x_MK.shape)} {x_MK.dtype} does not fit the weights")
    if integers:
        return linear(library, weight, x_MK, threads)
    m, wide = x_MK.shape[0], wide or x_MK.dtype == torch.float32
    y_MN = torch.empty(m, weight.n, dtype=torch.float32 if wide else x_MK.dtype)
    library.phikit_rows(weight, x_MK.data_ptr(), wide, m, y_MN.data_ptr(), threads)
    return y_MN


def unpack(library: ctypes.CDLL, weight: Matrix, threads: int) -> Tensor:
    """The weights as bfloat16, transposed: [K, N]."""
    # rows a power of two apart would fall on the same places of the processor's caches
    stride = -(-weight.n // 32) * 32 + 32
    out_KN = torch.empty(weight.k, stride, dtype=torch.bfloat16)
    library.phikit_unpack(weight, out_KN.data_ptr(), stride, threads)
    return out_KN[:, : weight.n]


class PackedRows:
    """x · wᵀ of bfloat16 for many rows, in float32; the weights are copied when it is made.

    Args:
        weight_NK: bfloat16 on the CPU, an even number of columns.
    """

    def __init__(self, library: ctypes.CDLL, weight_NK: Tensor) -> None:
        weight_NK = weight_NK.detach().contiguous()
        n, k = weight_NK.shape
        if k % 2 or weight_NK.dtype != torch.bfloat16:
            raise PhikitError(f"weights [{n}, {k}] of {weight_NK.dtype} cannot be packed")
        self._library = library
        self.data = weight_NK.new_empty(-(-n // PANEL) * PANEL * k)
        threads = torch.get_num_threads()
        library.phikit_pack(weight_NK.data_ptr(), n, k, self.data.data_ptr(), threads)
        self._matrix = matrix("packed", n, k, self.data)

    def matrix(self) -> Matrix:
        return self._matrix

    def __call__(self, x_MK: Tensor) -> Tensor:
        """[M, N], float32."""
        x_MK = x_MK.contiguous()
        m, k = x_MK.shape
        if k != self._matrix.k or x_MK.dtype != torch.bfloat16:
            raise PhikitError(f"{tuple(x_MK.shape)} {x_MK.dtype} does not fit the packed weights")
        y_MN = torch.empty(m, self._matrix.n)
        if m % _ROW_TILE:
            x_MK = torch.cat([x_MK, x_MK.new_zeros(-m % _ROW_TILE, k)])
        self._library.phikit_packed_rows(
            self._matrix, x_MK.data_ptr(), m, y_MN.data_ptr(), torch.get_num_threads()
        )
        return y_MN
