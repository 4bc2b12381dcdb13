"""The members of a packed file one by one, past those that are damaged.

A WARC archive is packed record by record, each a gzip member, a zstd frame or an xz stream of its
own. What follows a damaged one can therefore be read: the next place is looked for where a member
begins, by its first bytes, and unpacks to the beginning of a record.
"""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

AT_ONCE = 1 << 16  # packed bytes read at once
_LONGEST_MARK = 6  # bytes that tell a member's beginning
_GZIP = zlib.MAX_WBITS | 16


class Member(ABC):
    """A member as a stream of its unpacked bytes, which end where it is damaged.

    Attributes:
        kind: what such a member is called.
        begin: where it begins in the file, in bytes.
        end: where it ends, once `read` has told of its end.
        damage: what is wrong with it, once `read` has come upon it.
    """

    kind: str

    def __init__(self, packed: IO[bytes], begin: int) -> None:
        self.begin = self.end = begin
        self.damage = ""
        self._packed = packed
        self._told = 0

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; none at the end."""
        if size < 0:
            return b"".join(iter(lambda: self.read(AT_ONCE), b""))
        data = self._unpacked(size) if size and not self.damage else b""
        self._told += len(data)
        return data

    @abstractmethod
    def _unpacked(self, size: int) -> bytes:
        """At most `size` bytes more; with the last, or after it, sets `end` or `damage`."""

    def tell(self) -> int:
        """How many unpacked bytes have been read."""
        return self._told

    def finish(self) -> None:
        """Reads on to its end, or to what is wrong with it."""
        while self.read(AT_ONCE):
            pass

    def begins_with(self, first: bytes) -> bool:
        """Whether it unpacks to what begins so; to be asked before anything is read."""
        while len(first) > self._told:
            at = self._told
            data = self.read(len(first) - at)
            if not data or first[at : at + len(data)] != data:
                return False
        return True


class GzipMember(Member):
    kind = "gzip member"

    def __init__(self, packed: IO[bytes], begin: int) -> None:
        super().__init__(packed, begin)
        self._at = begin
        self._unpacking = zlib.decompressobj(_GZIP)
        self._waiting = b""

    def _unpacked(self, size: int) -> bytes:
        while not self._unpacking.eof:
            if not self._waiting:
                self._packed.seek(self._at)
                self._waiting = self._packed.read(AT_ONCE)
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
                return data
        return b""


class _NoMember(Member):
    """What stands where a member should begin."""

    def __init__(self, packed: IO[bytes], begin: int, kind: str) -> None:
        super().__init__(packed, begin)
        self.kind = kind
        self.damage = f"no {kind} begins here"

    def _unpacked(self, size: int) -> bytes:
        return b""


@dataclass(frozen=True)
class Packing:
    """How a file is packed: what its members are called and begin with, and how one is opened."""

    kind: str
    mark: re.Pattern[bytes]
    member: Callable[[IO[bytes], int], Member]


GZIP = Packing(GzipMember.kind, re.compile(rb"\x1f\x8b\x08"), GzipMember)


def members(packed: IO[bytes], packing: Packing, first: bytes) -> Iterator[Member]:
    """All members of a file; after a damaged one, those that begin with the bytes `first`.

    What is no member at all is yielded as a damaged one, zeros at the end of the file apart.
    """
    at: int | None = 0
    while at is not None:
        packed.seek(at)
        head = packed.read(_LONGEST_MARK)
        if not head or (not head.strip(b"\0") and _only_zeros(packed)):
            return
        if packing.mark.match(head):
            member = packing.member(packed, at)
        else:
            member = _NoMember(packed, at, packing.kind)
        yield member
        member.finish()
        at = _next(packed, packing, at + 1, first) if member.damage else member.end


def _only_zeros(packed: IO[bytes]) -> bool:
    return all(not piece.strip(b"\0") for piece in iter(lambda: packed.read(AT_ONCE), b""))


def _next(packed: IO[bytes], packing: Packing, begin: int, first: bytes) -> int | None:
    """Where the next member begins that unpacks to what begins so; None if there is none."""
    while True:
        packed.seek(begin)
        piece = packed.read(AT_ONCE)
        for found in packing.mark.finditer(piece):
            if packing.member(packed, begin + found.start()).begins_with(first):
                return begin + found.start()
        if len(piece) < AT_ONCE:
            return None
        begin += len(piece) - _LONGEST_MARK + 1
