"""Safetensors files written tensor by tensor: what is written is not held in memory.

The format begins with a header that says where everything is, so it is known last. Room is left for
it: the format lets the header be filled up with spaces.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from phikit.errors import PhikitError
from phikit.files import write_json

_SHARD = 2**30  # bytes
_NAMES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64",
    torch.uint8: "U8", torch.int8: "I8", torch.int32: "I32", torch.int64: "I64",
    torch.bool: "BOOL",
}  # fmt: skip
_ENTRY = 160  # bytes of a header for each tensor, beside its name
_ALIGNED = 64
_AT_ONCE = 2**24  # bytes


class Shards:
    """Files of about a gibibyte, with their index.

    Args:
        names: of all tensors that will come (there may be fewer).
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        self.folder = folder
        room = 64 + sum(len(json.dumps(name)) + _ENTRY for name in names)
        self._room = -(-room // _ALIGNED) * _ALIGNED - 8  # the header's length takes 8
        self._file: BinaryIO | None = None
        self._header: dict[str, Any] = {}
        self._bytes = self._total = 0
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Writes a tensor.

        Raises:
            PhikitError: the format has no such numbers.
        """
        if tensor.dtype not in _NAMES:
            raise PhikitError(f"{name} holds {tensor.dtype}, which safetensors files do not")
        if self._file is None:
            self._file = (self.folder / f"part-{len(self._files)}").open("wb")
            self._file.seek(8 + self._room)
            self._header, self._bytes = {"__metadata__": {"format": "pt"}}, 0
        size = tensor.numel() * tensor.element_size()
        self._header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._bytes, self._bytes + size],
        }
        flat = tensor.contiguous().flatten().view(torch.uint8)
        for start in range(0, size, _AT_ONCE):
            self._file.write(flat[start : start + _AT_ONCE].numpy().tobytes())
        self._bytes += size
        if self._bytes >= _SHARD:
            self._close()

    def _close(self) -> None:
        if self._file is None:
            return
        header = json.dumps(self._header, separators=(",", ":")).encode()
        if len(header) > self._room:
            raise PhikitError("more tensors were written than were announced")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
        self._file.close()
        self._file = None
        self._total += self._bytes
        self._files.append([name for name in self._header if name != "__metadata__"])

    def finish(self) -> None:
        """Closes the last file, and writes the index."""
        self._close()
        count, where = len(self._files), {}
        for i, names in enumerate(self._files):
            name = f"model-{i + 1:05}-of-{count:05}.safetensors"
            (self.folder / f"part-{i}").rename(self.folder / name)
            where.update(dict.fromkeys(names, name))
        index = {"metadata": {"total_size": self._total}, "weight_map": where}
        write_json(self.folder / "model.safetensors.index.json", index)

    def abandon(self) -> None:
        """Closes the file that is being written, as it is."""
        if self._file is not None:
            self._file.close()
