"""What losses need of a chunk of logits, and the way back, without float32 copies of the chunk.

Shapes: C rows (tokens) of a chunk, R rows of it that stay in the cache, V vocabulary.

With y = logits / temperature and p = softmax(y), every loss here is made of four sums over a row,
and its slope by y is p (a + c log p) + b, and something more at the target. On a CPU the C kernels
read logits where they are, in float32 or bfloat16; else they are made float32 a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import CDLL
from typing import NamedTuple

import torch
from torch import Tensor

from phikit.train.native.build import library

_WIDE = {torch.bfloat16: 0, torch.float32: 1}  # as the kernels call them
CACHE_BYTES = 8 << 20  # of float32 logits at a time: about what stays in the cache


class Sums(NamedTuple):
    """Of each row: log Σ exp(y), y at the target, the mean of y under p, and Σ y."""

    log_z_C: Tensor
    target_C: Tensor
    mean_C: Tensor
    total_C: Tensor


def cache_rows(vocabulary: int) -> int:
    """Rows of logits over this vocabulary that fit the processor's cache; 16 at least."""
    return max(16, CACHE_BYTES // (4 * vocabulary))


def sums(logits_CV: Tensor, targets_C: Tensor, temperature: float) -> Sums:
    """Float32, each [C]; `logits_CV` is contiguous."""
    found = Sums(*torch.empty(4, len(logits_CV), dtype=torch.float32, device=logits_CV.device))
    kernels = _kernels(logits_CV)
    if kernels is not None:
        kernels.phikit_logit_sums(
            logits_CV.data_ptr(), _WIDE[logits_CV.dtype], targets_C.data_ptr(), temperature,
            *(t.data_ptr() for t in found), *logits_CV.shape, torch.get_num_threads(),
        )  # fmt: skip
        return found
    for rows in _parts(logits_CV):
        y = _scaled(logits_CV[rows], temperature)
        log_z = y.logsumexp(1)
        found.log_z_C[rows] = log_z
        found.target_C[rows] = y.gather(1, targets_C[rows, None]).squeeze(1)
        found.total_C[rows] = y.sum(1)
        found.mean_C[rows] = torch.linalg.vecdot((y - log_z[:, None]).exp_(), y)
    return found


def write_slopes(
    logits_CV: Tensor,
    slopes_CV: Tensor,
    targets_C: Tensor,
    temperature: float,
    log_z_C: Tensor,
    p_factor_C: Tensor,
    target_slope_C: Tensor,
    log_p_factor_C: Tensor | None = None,
    everywhere: float = 0.0,
) -> None:
    """Writes a loss's slopes by the logits.

    Args:
        slopes_CV: to write to; contiguous, and may be the logits themselves.
        log_z_C: from `sums`.
        p_factor_C, log_p_factor_C, everywhere, target_slope_C: a, c, b, and what the target has
            beside; slopes by y.
    """
    if temperature != 1.0:  # to slopes by the logits
        p_factor_C, target_slope_C = p_factor_C / temperature, target_slope_C / temperature
        everywhere /= temperature
        log_p_factor_C = None if log_p_factor_C is None else log_p_factor_C / temperature
    kernels = _kernels(logits_CV) if slopes_CV.dtype == torch.bfloat16 else None
    if kernels is not None:
        if log_p_factor_C is None:
            log_p_factor_C = torch.zeros_like(log_z_C)
        rows = [
            t.float().contiguous() for t in (log_z_C, p_factor_C, log_p_factor_C, target_slope_C)
        ]
        kernels.phikit_logit_slopes(
            logits_CV.data_ptr(), _WIDE[logits_CV.dtype], slopes_CV.data_ptr(),
            targets_C.data_ptr(), temperature, *(t.data_ptr() for t in rows), everywhere,
            *logits_CV.shape, torch.get_num_threads(),
        )  # fmt: skip
        return
    for part in _parts(logits_CV):
        log_p = _scaled(logits_CV[part], temperature).sub_(log_z_C[part, None])
        p = log_p.exp()
        if log_p_factor_C is None:
            slopes = p.mul_(p_factor_C[part, None])
        else:
            slopes = log_p.mul_(log_p_factor_C[part, None]).add_(p_factor_C[part, None]).mul_(p)
        if everywhere:
            slopes += everywhere
        slopes.scatter_add_(1, targets_C[part, None], target_slope_C[part, None])
        slopes_CV[part] = slopes


def _kernels(logits_CV: Tensor) -> CDLL | None:
    """Those that read these logits; None if there are none."""
    if logits_CV.device.type != "cpu" or logits_CV.dtype not in _WIDE:
        return None
    return library()


def _parts(logits_CV: Tensor) -> Iterator[slice]:
    size = cache_rows(logits_CV.shape[1])
    return (slice(i, min(i + size, len(logits_CV))) for i in range(0, len(logits_CV), size))


def _scaled(logits_RV: Tensor, temperature: float) -> Tensor:
    """Float32, and a copy."""
    y = logits_RV.to(torch.float32, copy=True)
    return y if temperature == 1.0 else y.div_(temperature)
