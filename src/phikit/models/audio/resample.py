"""Sound to another sample rate, by a polyphase filter.

The filter is the common one of its kind: a sinc of 10 zero crossings on each side under a Kaiser
window of β 5, its gain at 0 Hz made 1 (that of `scipy.signal.resample_poly`, which the published
code of phi-4-multimodal uses). The ratio is the exact one of the two rates. The published code
divides the rates as whole numbers instead, so that 44.1 kHz comes out at 22.05 kHz but is taken for
16 kHz, slowed down; at multiples of 16 kHz (32 and 48 kHz) both are the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_CROSSINGS = 10
_BETA = 5.0
_AT_ONCE = 65_536  # output samples: bounds the memory of one step to some 50 MB


def resample(wave_N: Tensor, rate: int, target: int) -> Tensor:
    """Sound of `rate` samples per second → of `target`, ceil(N × target / rate) samples, float32.

    Output sample n is Σ over input samples i of x[i] · h(n · down - i · up), with up / down the
    ratio of the rates in lowest terms and h the filter, centred on 0.
    """
    if rate == target or not len(wave_N):
        return wave_N.float()
    common = math.gcd(rate, target)
    up, down = target // common, rate // common
    reach = _CROSSINGS * max(up, down)
    filter_F = _filter(reach, max(up, down)).to(wave_N.device) * up
    wave_N = wave_N.double()
    count, taps = -(-len(wave_N) * up // down), 2 * reach // up + 1
    tap_T = torch.arange(taps, device=wave_N.device)
    pieces = []
    for first in range(0, count, _AT_ONCE):
        last = min(first + _AT_ONCE, count)
        at_O = torch.arange(first, last, device=wave_N.device) * down
        source_OT = torch.div(at_O - reach + up - 1, up, rounding_mode="floor")[:, None] + tap_T
        place_OT = at_O[:, None] - source_OT * up + reach
        known_OT = (source_OT >= 0) & (source_OT < len(wave_N)) & (place_OT >= 0)
        x_OT = wave_N[source_OT.clamp(0, len(wave_N) - 1)]
        h_OT = filter_F[place_OT.clamp(0, 2 * reach)]
        pieces.append((x_OT * h_OT * known_OT).sum(-1))
    return torch.cat(pieces).float()


def _filter(reach: int, ratio: int) -> Tensor:
    """2 × reach + 1 samples that pass below 1 / (2 × ratio) of the sample rate, in float64."""
    at_F = torch.arange(-reach, reach + 1, dtype=torch.float64)
    window_F = torch.kaiser_window(len(at_F), periodic=False, beta=_BETA, dtype=torch.float64)
    filter_F = torch.sinc(at_F / ratio) * window_F
    return filter_F / filter_F.sum()
