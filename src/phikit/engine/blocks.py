"""Which blocks of the KV cache are in use, and by how many.

A block holds the keys and values of `size` consecutive positions, in every layer. It may belong to
several rows and to the prefix cache at once; it is free again when the last of them lets go.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from phikit.errors import PhikitError

NULL = 0  # a block of zeros that is never given out: what tables hold where there is nothing


class Blocks:
    """Reference-counted blocks 1 .. count - 1; the lowest free ones are given out first.

    Low numbers first keep the blocks in use close together, so that a step can read them in place.
    """

    def __init__(self, count: int, size: int) -> None:
        if count < 2:
            raise PhikitError(f"a KV cache of {count} blocks is too small; 2 is the least")
        self.count, self.size = count, size
        self.references = [0] * count
        self._free = list(range(1, count))  # sorted, hence a heap

    @property
    def free(self) -> int:
        """How many blocks can be taken."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many blocks have a reference."""
        return self.count - 1 - len(self._free)

    def take(self) -> int:
        """A block with one reference.

        Raises:
            PhikitError: none is free; ask `free` first.
        """
        if not self._free:
            raise PhikitError(f"all {self.count - 1} blocks of the KV cache are in use")
        block = heapq.heappop(self._free)
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One reference more to a block in use."""
        if self.references[block] < 1:
            raise PhikitError(f"block {block} of the KV cache is not in use")
        self.references[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One reference less to each."""
        for block in blocks:
            left = self.references[block] - 1
            if left < 0:
                raise PhikitError(f"block {block} of the KV cache was released twice")
            self.references[block] = left
            if not left:
                heapq.heappush(self._free, block)
