"""The frames of a zstd file as members (RFC 8878), unpacked by fastwarc's reader.

A frame's end is found by the lengths that its blocks state. Frames to be skipped hold other things,
such as the dictionary by which all that follow are packed, at the beginning of some WARC archives.
"""

from __future__ import annotations

import functools
import os
import re
from typing import IO, Any

from phikit.data.reading.members import AT_ONCE, Member, Packing

_SKIPPED = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
_DICTIONARY = b"\x5d\x2a\x4d\x18"
MARK = re.compile(rb"\x28\xb5\x2f\xfd|" + _SKIPPED.pattern)
_LONGEST_BLOCK = 1 << 17
_MOST_EMPTY = 1 << 12  # blocks of a frame; zeros would go on and on
_LARGEST_DICTIONARY = 1 << 24


class Frame(Member):
    """A frame; one to be skipped unpacks to nothing.

    Args:
        dictionary: the frame that holds it, as it stands in the file.
    """

    kind = "zstd frame"

    def __init__(self, packed: IO[bytes], begin: int, dictionary: bytes = b"") -> None:
        super().__init__(packed, begin)
        self._skipped, self._whole = frame_end(packed, begin)
        # without its end all that follows is unpacked, as far as that goes
        self._reader = as_one(_Span(packed, dictionary, begin, self._whole))

    def _unpacked(self, size: int) -> bytes:
        data = b""
        try:
            data = b"" if self._skipped else self._reader.read(size)
        except OSError as e:
            if e.errno is not None:
                raise
            self.damage = str(e)
        if not data and not self.damage:
            if self._whole is None:
                self.damage = "the file ends in it"
            else:
                self.end = self._whole
        return data


class _Span:
    """Some bytes, and after them those of a part of a file, as a stream."""

    def __init__(self, packed: IO[bytes], before: bytes, begin: int, end: int | None) -> None:
        self._packed, self._before, self._at, self._end = packed, before, begin, end
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        most = AT_ONCE if size < 0 else size
        if self._before:
            data, self._before = self._before[:most], self._before[most:]
        else:
            self._packed.seek(self._at)
            left = most if self._end is None else self._end - self._at
            data = self._packed.read(min(most, left))
            self._at += len(data)
        self._told += len(data)
        return data

    def tell(self) -> int:
        return self._told


def frame_end(packed: IO[bytes], begin: int) -> tuple[bool, int | None]:
    """Whether a frame is one to be skipped; where it ends, or None if that cannot be told."""
    size = packed.seek(0, os.SEEK_END)
    packed.seek(begin)
    head = packed.read(8)
    if len(head) < 8:
        return False, None
    if _SKIPPED.match(head):
        end = begin + 8 + int.from_bytes(head[4:], "little")
        return True, end if end <= size else None
    flags = head[4]
    alone = bool(flags & 0x20)  # one segment: it states its size, and no window
    at = begin + 5 + (not alone) + (0, 1, 2, 4)[flags & 3] + (int(alone), 2, 4, 8)[flags >> 6]
    last, empty = False, 0
    while not last:
        packed.seek(at)
        stated = packed.read(3)
        word = int.from_bytes(stated, "little")
        last, kind, length = bool(word & 1), word >> 1 & 3, word >> 3
        empty += not length
        if len(stated) < 3 or kind == 3 or length > _LONGEST_BLOCK or empty > _MOST_EMPTY:
            return False, None
        at += 3 + (1 if kind == 1 else length)  # of one byte that is repeated
    at += 4 * bool(flags & 4)  # the checksum
    return False, at if at <= size else None


def zstd(packed: IO[bytes]) -> Packing:
    """How a zstd file is packed: with the dictionary that its first frame holds, if it does."""
    dictionary = b""
    packed.seek(0)
    if packed.read(4) == _DICTIONARY:
        _, end = frame_end(packed, 0)
        if end is not None and end <= _LARGEST_DICTIONARY:
            packed.seek(0)
            dictionary = packed.read(end)
    return Packing(Frame.kind, MARK, functools.partial(Frame, dictionary=dictionary))


def as_one(packed: Any) -> Any:
    """All that a zstd file unpacks to, as a stream, wherever its frames begin."""
    from fastwarc.stream_io import ZstdReader

    return ZstdReader(packed)


def by_record(packed: IO[bytes], packing: Packing, first: bytes) -> bool:
    """Whether every frame is a record of its own; the second tells.

    Programs that pack in several threads begin a frame anywhere. Of a damaged second frame, or a
    first one, nothing can be told: then every frame is taken for a record.
    """
    at, whole = 0, 0
    while True:
        packed.seek(at)
        if not MARK.match(packed.read(4)):
            return True
        skipped, end = frame_end(packed, at)
        if end is None:
            return True
        if not skipped and whole:
            frame = packing.member(packed, at)
            return frame.begins_with(first) or bool(frame.damage)
        at, whole = end, whole + (not skipped)
