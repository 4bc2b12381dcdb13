"""Each block format against a scalar reading of its description, one weight at a time."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.models.quants import FORMATS, OTHERS, decode


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def q4_0(block: bytes) -> list[float]:
    out = [0.0] * 32
    for i in range(16):
        out[i] = half(block, 0) * ((block[2 + i] & 0x0F) - 8)
        out[i + 16] = half(block, 0) * ((block[2 + i] >> 4) - 8)
    return out


def q4_1(block: bytes) -> list[float]:
    out = [0.0] * 32
    for i in range(16):
        out[i] = half(block, 0) * (block[4 + i] & 0x0F) + half(block, 2)
        out[i + 16] = half(block, 0) * (block[4 + i] >> 4) + half(block, 2)
    return out


def q8_0(block: bytes) -> list[float]:
    return [half(block, 0) * q for q in struct.unpack_from("<32b", block, 2)]


def q4_k(block: bytes) -> list[float]:
    d, dmin, scales, quants = half(block, 0), half(block, 2), block[4:16], block[16:]
    out = []
    for sub in range(8):
        if sub < 4:
            scale, minimum = scales[sub] & 63, scales[sub + 4] & 63
        else:
            scale = (scales[sub + 4] & 0x0F) | ((scales[sub - 4] >> 6) << 4)
            minimum = (scales[sub + 4] >> 4) | ((scales[sub] >> 6) << 4)
        for i in range(32):
            byte = quants[sub // 2 * 32 + i]
            q = byte >> 4 if sub % 2 else byte & 0x0F
            out.append(d * scale * q - dmin * minimum)
    return out


def q6_k(block: bytes) -> list[float]:
    low, high = block[:128], block[128:192]
    scales, d = struct.unpack_from("<16b", block, 192), half(block, 208)
    out = [0.0] * 256
    for part in range(2):
        for i in range(32):
            a, b, h = low[part * 64 + i], low[part * 64 + 32 + i], high[part * 32 + i]
            quants = [
                (a & 15) | ((h >> 0) & 3) << 4,
                (b & 15) | ((h >> 2) & 3) << 4,
                (a >> 4) | ((h >> 4) & 3) << 4,
                (b >> 4) | ((h >> 6) & 3) << 4,
            ]
            for group, q in enumerate(quants):
                at = part * 128 + group * 32 + i
                out[at] = d * scales[at // 16] * (q - 32)
    return out


SCALAR = {
    "F32": lambda block: list(struct.unpack("<f", block)),
    "F16": lambda block: [half(block, 0)],
    "BF16": lambda block: list(struct.unpack("<f", b"\0\0" + block)),
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q8_0": q8_0,
    "Q4_K": q4_k,
    "Q6_K": q6_k,
}


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda f: f.name)
def test_blocks_of_any_bytes_are_read_as_described(form) -> None:
    @given(st.binary(min_size=2 * form.bytes, max_size=2 * form.bytes))
    def same(raw: bytes) -> None:
        with np.errstate(all="ignore"):
            got = decode(np.frombuffer(raw, np.uint8), form)
            blocks = [raw[: form.bytes], raw[form.bytes :]]
            expected = np.array([v for b in blocks for v in SCALAR[form.name](b)], np.float64)
        assert got.dtype == np.float32 and got.shape == (2 * form.weights,)
        if np.isfinite(expected).all():
            # the terms of a difference may be far larger than it
            size = np.abs(expected).max()
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5 * size + 1e-40)

    same()


def test_ordinary_blocks_are_exact_and_their_order_is_kept() -> None:
    """Scales of a usual size, many blocks at once."""
    rng = np.random.default_rng(0)
    for form in FORMATS.values():
        raw = rng.integers(0, 256, (50, form.bytes), dtype=np.uint8)
        at = {"Q6_K": [208]}.get(form.name, [0, 2] if form.name in ("Q4_1", "Q4_K") else [0])
        if form.name.startswith("Q"):
            for a in at:
                scales = rng.normal(size=50).astype("<f2")
                raw[:, a : a + 2] = scales[:, None].view(np.uint8)
        expected = np.array([SCALAR[form.name](b.tobytes()) for b in raw]).reshape(-1)
        keep = np.isfinite(expected) & (np.abs(expected) < 1e30)
        with np.errstate(all="ignore"):
            got = decode(raw, form)
        np.testing.assert_allclose(got[keep], expected[keep], rtol=1e-5, atol=1e-4)


def test_no_type_is_both_read_and_refused() -> None:
    assert not FORMATS.keys() & OTHERS.keys()
    names = [f.name for f in FORMATS.values()] + list(OTHERS.values())
    assert len(set(names)) == len(names)
