"""A small writer of GGUF files, from the format's description, for tests."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

#: A tensor: its type's number, its shape in torch's order, and its bytes.
Raw = tuple[int, tuple[int, ...], bytes]


def f32(values: np.ndarray) -> Raw:
    return 0, values.shape, values.astype("<f4").tobytes()


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    """A value after its type's number: bool, int (u32), float (f32), text, lists of one type."""
    if isinstance(value, list):
        parts = [_value(v) for v in value]
        return (
            struct.pack("<I", 9)
            + parts[0][:4]
            + struct.pack("<Q", len(parts))
            + b"".join(part[4:] for part in parts)
        )
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<I", 8) + _string(value)


def write(
    path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Raw], version: int = 3
) -> None:
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    header += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        header += _string(name) + struct.pack("<I", len(shape))
        header += struct.pack(f"<{len(shape)}Q", *shape[::-1])
        header += struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)
