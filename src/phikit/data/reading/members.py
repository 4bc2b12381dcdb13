"""The members of a gzip file one by one, past those that are damaged.

A WARC archive is packed record by record, each a gzip member of its own. What follows a damaged one
can therefore be read: the next place is looked for where a member begins, by its first bytes, and
unpacks to the beginning of a record.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO

_MAGIC = b"\x1f\x8b\x08"
_AT_ONCE = 1 << 16  # packed bytes read at once
_HEAD = 1 << 10  # packed bytes that are enough to unpack a member's first ones
_GZIP = zlib.MAX_WBITS | 16


class Member:
    """A gzip member as a stream of its unpacked bytes, which end where it is damaged.

    Attributes:
        begin: where it begins in the file, in bytes.
        end: where it ends, once `read` has told of its end.
        damage: what is wrong with it, once `read` has come upon it.
    """

    def __init__(self, packed: IO[bytes], begin: int) -> None:
        self.begin = self.end = begin
        self.damage = ""
        self._packed = packed
        self._at = begin
        self._unpacking = zlib.decompressobj(_GZIP)
        self._waiting = b""
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(_AT_ONCE), b""))
        while size and not self._unpacking.eof and not self.damage:
            if not self._waiting:
                self._packed.seek(self._at)
                self._waiting = self._packed.read(_AT_ONCE)
                self._at += len(self._waiting)
                if not self._waiting:
                    self.damage = "the file ends in it"
                    return b""
            try:
                data = self._unpacking.decompress(self._waiting, size)
            except zlib.error as e:
                self.damage = str(e)
                return b""
            self._waiting = self._unpacking.unconsumed_tail
            if self._unpacking.eof:
                self.end = self._at - len(self._unpacking.unused_data)
            if data:
                self._told += len(data)
                return data
        return b""

    def tell(self) -> int:
        """How many unpacked bytes have been read."""
        return self._told

    def finish(self) -> None:
        """Reads on to its end, or to what is wrong with it."""
        while self.read(_AT_ONCE):
            pass


def members(packed: IO[bytes], first: bytes) -> Iterator[Member]:
    """All members of a gzip file; after a damaged one, those that begin with the bytes `first`.

    What is no member at all is yielded as a damaged one, zeros at the end of the file apart.
    """
    at: int | None = 0
    while at is not None:
        packed.seek(at)
        head = packed.read(len(_MAGIC))
        if not head or (not head.strip(b"\0") and _only_zeros(packed)):
            return
        member = Member(packed, at)
        if head == _MAGIC:
            yield member
            member.finish()
        else:
            member.damage = "no gzip member begins here"
            yield member
        at = _next(packed, at + 1, first) if member.damage else member.end


def _only_zeros(packed: IO[bytes]) -> bool:
    return all(not piece.strip(b"\0") for piece in iter(lambda: packed.read(_AT_ONCE), b""))


def _next(packed: IO[bytes], begin: int, first: bytes) -> int | None:
    """Where the next member begins that unpacks to what begins so; None if there is none."""
    while True:
        packed.seek(begin)
        piece = packed.read(_AT_ONCE)
        at = piece.find(_MAGIC)
        while at >= 0:
            packed.seek(begin + at)
            if _unpacks_to(packed.read(_HEAD), first):
                return begin + at
            at = piece.find(_MAGIC, at + 1)
        if len(piece) < _AT_ONCE:
            return None
        begin += len(piece) - len(_MAGIC) + 1


def _unpacks_to(packed: bytes, first: bytes) -> bool:
    try:
        return zlib.decompressobj(_GZIP).decompress(packed, len(first)) == first
    except zlib.error:
        return False
