"""Products of bfloat16 whose results stay float32.

Shapes: M rows of activations, N rows of a weight matrix, K its columns.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

_COLUMNS = 64


class Logits:
    """x · wᵀ of bfloat16 on the CPU, for many rows; the weights are copied when it is made."""

    def __init__(self, library: ctypes.CDLL, weight_NK: Tensor) -> None:
        self._library, (self.n, self.k) = library, weight_NK.shape
        weight_NK = weight_NK.detach().contiguous()
        self._packed = weight_NK.new_empty(-(-self.n // _COLUMNS) * _COLUMNS * self.k)
        library.phikit_logits_pack(
            weight_NK.data_ptr(), self.n, self.k, self._packed.data_ptr(), torch.get_num_threads()
        )

    @staticmethod
    def fits(weight_NK: Tensor) -> bool:
        """Whether the kernel takes such weights."""
        return (
            weight_NK.dtype == torch.bfloat16
            and weight_NK.device.type == "cpu"
            and weight_NK.shape[1] % 2 == 0
        )

    def __call__(self, x_MK: Tensor) -> Tensor:
        """[M, N], float32."""
        x_MK = x_MK.contiguous()
        y_MN = torch.empty(len(x_MK), self.n)
        self._library.phikit_logits(
            self._packed.data_ptr(), self.n, self.k, x_MK.data_ptr(), len(x_MK), y_MN.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return y_MN
