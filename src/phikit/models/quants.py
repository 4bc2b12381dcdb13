"""The block formats of GGUF: bytes to float32, vectorised.

Every format cuts a row into blocks of equal size; a block holds its scales and its small integers.
The layouts are those of the GGUF specification (ggml's block structures). Shapes: N blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Array = np.ndarray


class Format(NamedTuple):
    """A tensor type: its name, weights per block, bytes per block, and how a block is read.

    `decode` gives float32 [N, weights] of uint8 [N, bytes].
    """

    name: str
    weights: int
    bytes: int
    decode: Callable[[Array], Array]


def _half(raw_NB: Array) -> Array:
    """float16 at the bytes given, as float32 [N, B / 2]."""
    return np.ascontiguousarray(raw_NB).view("<f2").astype(np.float32)


def _f32(raw_NB: Array) -> Array:
    return np.ascontiguousarray(raw_NB).view("<f4")


def _bf16(raw_NB: Array) -> Array:
    upper = np.ascontiguousarray(raw_NB).view("<u2").astype(np.uint32) << np.uint32(16)
    return upper.view(np.float32)


def _nibbles(raw_NB: Array) -> Array:
    """The lower halves of all bytes, then the upper halves: [N, 2 B]."""
    return np.concatenate((raw_NB & 15, raw_NB >> 4), axis=1)


def _q8_0(raw_NB: Array) -> Array:
    """scale f16; 32 × int8."""
    return _half(raw_NB[:, :2]) * np.ascontiguousarray(raw_NB[:, 2:]).view(np.int8)


def _q4_0(raw_NB: Array) -> Array:
    """scale f16; 32 × 4 bits, offset by 8: byte i holds weights i (low) and i + 16 (high)."""
    return _half(raw_NB[:, :2]) * (_nibbles(raw_NB[:, 2:]).astype(np.int8) - np.int8(8))


def _q4_1(raw_NB: Array) -> Array:
    """scale f16, minimum f16; 32 × 4 bits as in Q4_0, without offset."""
    return _half(raw_NB[:, :2]) * _nibbles(raw_NB[:, 4:]) + _half(raw_NB[:, 2:4])


def _q4_k(raw_NB: Array) -> Array:
    """scale and minimum of the block f16; 8 × 6-bit scales and minima; 256 × 4 bits.

    The 12 scale bytes: 0–3 hold the lower 6 bits of scales 0–3, 4–7 those of minima 0–3; 8–11 the
    lower 4 bits of scales (low) and minima (high) 4–7, whose upper 2 bits are on top of bytes 0–7.
    32 bytes hold 64 weights: the lower halves one sub-block of 32, the upper halves the next.
    """
    n = len(raw_NB)
    scale, minimum = _half(raw_NB[:, :2]), _half(raw_NB[:, 2:4])
    first, second, third = raw_NB[:, 4:8], raw_NB[:, 8:12], raw_NB[:, 12:16]
    scales = np.concatenate((first & 63, (third & 15) | (first >> 6 << 4)), axis=1)
    minima = np.concatenate((second & 63, (third >> 4) | (second >> 6 << 4)), axis=1)
    bytes_N432 = raw_NB[:, 16:].reshape(n, 4, 1, 32)
    quants = np.concatenate((bytes_N432 & 15, bytes_N432 >> 4), axis=2).reshape(n, 8, 32)
    out = (scale * scales)[..., None] * quants - (minimum * minima)[..., None]
    return out.reshape(n, 256)


def _q6_k(raw_NB: Array) -> Array:
    """128 bytes of lower 4 bits, 64 of upper 2 bits, 16 × int8 scales, scale of the block f16.

    Each half of the block has 128 weights in 4 groups of 32: the lower bits of groups 0 and 1 are
    the low halves of 64 bytes, those of 2 and 3 the high halves; byte i of the 32 upper ones holds
    2 bits for weight i of each group. Offset 32; one scale for 16 weights.
    """
    n = len(raw_NB)
    low = raw_NB[:, :128].reshape(n, 2, 1, 64)
    low = np.concatenate((low & 15, low >> 4), axis=2).reshape(n, 2, 4, 32)
    shift = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = (raw_NB[:, 128:192].reshape(n, 2, 1, 32) >> shift) & 3
    quants = (low | high << 4).astype(np.int8) - np.int8(32)
    scales = _half(raw_NB[:, 208:]) * np.ascontiguousarray(raw_NB[:, 192:208]).view(np.int8)
    return (scales[..., None] * quants.reshape(n, 16, 16)).reshape(n, 256)


#: GGUF's number of a tensor type → how to read it.
FORMATS = {
    0: Format("F32", 1, 4, _f32),
    1: Format("F16", 1, 2, _half),
    2: Format("Q4_0", 32, 18, _q4_0),
    3: Format("Q4_1", 32, 20, _q4_1),
    8: Format("Q8_0", 32, 34, _q8_0),
    12: Format("Q4_K", 256, 144, _q4_k),
    14: Format("Q6_K", 256, 210, _q6_k),
    30: Format("BF16", 1, 2, _bf16),
}

#: Names of the types that are not read, for errors.
OTHERS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 13: "Q5_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M",
}  # fmt: skip


def decode(raw: Array, form: Format) -> Array:
    """float32 weights, flat, of the bytes of whole blocks."""
    return form.decode(raw.reshape(-1, form.bytes)).reshape(-1)
