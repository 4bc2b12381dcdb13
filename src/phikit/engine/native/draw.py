"""Drawing a token per row by the C kernels, and putting tokens out of reach."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from phikit.errors import PhikitError


def draw_rows(
    library: ctypes.CDLL,
    logits_NV: Tensor,
    temperature_N: Tensor,
    uniform_N: Tensor,
    adjusted_NV: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token per row, from the whole of its distribution.

    Args:
        logits_NV: the model's, float32 on the CPU.
        temperature_N: 0 takes the highest logit, the first of equal ones.
        uniform_N: a number in [0, 1) per row.
        adjusted_NV: the logits to draw from, when they are others.

    Returns:
        The tokens; their log-probabilities as drawn, and as the model's own; the logarithm of the
        sum of the model's own exponentials, which is no number when a logit is none. All [N].
    """
    n, v = logits_NV.shape
    own_NV = logits_NV.contiguous()
    from_NV = own_NV if adjusted_NV is None else adjusted_NV.contiguous()
    token_N, numbers_3N = torch.empty(n, dtype=torch.int64), torch.empty(3, n)
    temperature_N, uniform_N = temperature_N.contiguous(), uniform_N.contiguous()
    failed = library.phikit_draw(
        own_NV.data_ptr(), from_NV.data_ptr(), temperature_N.data_ptr(), uniform_N.data_ptr(),
        token_N.data_ptr(), numbers_3N.data_ptr(), n, v, torch.get_num_threads(),
    )  # fmt: skip
    if failed:
        raise PhikitError(f"no memory to draw from a vocabulary of {v}")
    logprob_N, raw_N, log_z_N = numbers_3N
    return token_N, logprob_N, raw_N, log_z_N


def mask_rows(library: ctypes.CDLL, logits_NV: Tensor, bits_NW: np.ndarray) -> Tensor:
    """The logits where their bit is set, else -inf; 32 bits a word, the lowest is the first token.

    Args:
        logits_NV: float32 on the CPU.
        bits_NW: int32; tokens past the last word are out of reach.
    """
    logits_NV, bits_NW = logits_NV.contiguous(), np.ascontiguousarray(bits_NW)
    out_NV = torch.empty_like(logits_NV)
    library.phikit_mask(
        logits_NV.data_ptr(), bits_NW.ctypes.data, out_NV.data_ptr(), *logits_NV.shape,
        bits_NW.shape[1], torch.get_num_threads(),
    )  # fmt: skip
    return out_NV
