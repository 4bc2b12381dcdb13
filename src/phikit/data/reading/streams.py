"""The streams of an xz file as members (the .xz file format, 1.2), unpacked by Python's lzma.

A stream says where it ends only in its own last bytes, so what follows a damaged one is found by
the magic bytes of the next. Inside one stream nothing can be read past its damage.
"""

from __future__ import annotations

import lzma
import re
from typing import IO

from phikit.data.reading.members import AT_ONCE, Member, Packing

_HEADER = b"\xfd7zXZ\0"
_FOOTER = b"YZ"
_STEP = 1 << 9  # unpacked bytes at once: where damage is found, so many before it are lost
_MOST_PADDING = 1 << 10  # zeros between two streams that are looked through for the footer


class XzStream(Member):
    """A stream, and the zeros that may follow it."""

    kind = "xz stream"

    def __init__(self, packed: IO[bytes], begin: int) -> None:
        super().__init__(packed, begin)
        self._at = begin
        # let go of at the end: it holds as many bytes as the stream may refer back to
        self._unpacking: lzma.LZMADecompressor | None = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    def _unpacked(self, size: int) -> bytes:
        pieces, left = [], size
        while left and self._unpacking is not None:
            pieces.append(self._step(self._unpacking, min(left, _STEP)))
            left -= len(pieces[-1])
        return b"".join(pieces)

    def _step(self, unpacking: lzma.LZMADecompressor, size: int) -> bytes:
        """At most `size` bytes more, perhaps none."""
        packed = b""
        if unpacking.needs_input:
            self._packed.seek(self._at)
            packed = self._packed.read(AT_ONCE)
            self._at += len(packed)
            if not packed:
                return self._damaged("the file ends in it")
        try:
            data = unpacking.decompress(packed, size)
        except lzma.LZMAError as e:
            return self._damaged(str(e))
        if unpacking.eof:
            self.end = _past_zeros(self._packed, self._at - len(unpacking.unused_data))
            self._unpacking = None
        return data

    def _damaged(self, what: str) -> bytes:
        self.damage, self._unpacking = what, None
        return b""


XZ = Packing(XzStream.kind, re.compile(re.escape(_HEADER)), XzStream)


def _past_zeros(packed: IO[bytes], begin: int) -> int:
    packed.seek(begin)
    while piece := packed.read(AT_ONCE):
        left = piece.lstrip(b"\0")
        begin += len(piece) - len(left)
        if left:
            break
    return begin


def by_record(packed: IO[bytes], first: bytes) -> bool:
    """Whether there are several streams, and each begins with a record; the second tells.

    Programs that pack in several threads begin a stream anywhere. Of a damaged second stream
    nothing can be told: then every stream is taken to begin with one.
    """
    begin = _second(packed)
    if begin is None:
        return False
    stream = XzStream(packed, begin)
    return stream.begins_with(first) or bool(stream.damage)


def _second(packed: IO[bytes]) -> int | None:
    """Where the second stream begins; the first need not be whole."""
    begin = 1
    while True:
        packed.seek(begin)
        piece = packed.read(AT_ONCE)
        for found in XZ.mark.finditer(piece):
            if _follows_a_stream(packed, begin + found.start()):
                return begin + found.start()
        if len(piece) < AT_ONCE:
            return None
        begin += len(piece) - len(_HEADER) + 1


def _follows_a_stream(packed: IO[bytes], begin: int) -> bool:
    """A page that was xz itself may stand in a stream as it was; no footer is before that."""
    at = max(0, begin - _MOST_PADDING)
    packed.seek(at)
    return packed.read(begin - at).rstrip(b"\0").endswith(_FOOTER)
