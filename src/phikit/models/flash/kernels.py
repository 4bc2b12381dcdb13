"""The CUDA kernels of mamba-ssm and causal-conv1d, for tensors on a GPU where they are installed.

They compute what `scan.py` and `layers.py` compute, from the same inputs, likewise with float32
states; only the order of the additions differs. They are used for whole sequences from an empty
state and without document borders or padding, which is what they can do; everything else, and every
other device, runs in plain torch.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from torch import Tensor


@cache
def kernel(module: str, name: str) -> Any:
    """A function of an optional package, or None where that is not installed."""
    try:
        return getattr(import_module(module), name)
    except ImportError:
        return None


def fused_scan(
    x_BLI: Tensor, delta_BLI: Tensor, a_NI: Tensor, b_BLN: Tensor, c_BLN: Tensor, d_I: Tensor,
    bias_I: Tensor,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """As `scan.selective_scan` from an empty state, without gradients of the last state.

    None where the kernel is not installed.
    """
    scan = kernel("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn")
    if scan is None:
        return None
    x, delta, b, c = (t.mT.contiguous() for t in (x_BLI, delta_BLI, b_BLN, c_BLN))
    y_BIL, state_BIN = scan(
        x, delta, a_NI.t().float().contiguous(), b, c, D=d_I.float(), delta_bias=bias_I.float(),
        delta_softplus=True, return_last_state=True,
    )  # fmt: skip
    return y_BIL.mT, state_BIN.mT


def fused_convolution(x_BLI: Tensor, weight_IW: Tensor, bias_I: Tensor) -> Tensor | None:
    """Causal depthwise convolution and SiLU; None where the kernel is not installed."""
    convolve = kernel("causal_conv1d", "causal_conv1d_fn")
    if convolve is None:
        return None
    out: Tensor = convolve(x_BLI.mT, weight_IW, bias_I, activation="silu")
    return out.mT
