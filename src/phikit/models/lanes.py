"""Work side by side, each piece on one core, for models whose operations are short.

Sharing an operation between threads costs a meeting of the threads. In a small model the operations
are so short that the meetings cost as much as the work, and a core that is busy elsewhere makes the
others wait at every one of them. So a small model's batch is cut once, and every core takes a piece
through the whole model. A large model's operations are long, and its weights are better read once:
there torch's own threads share each operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

SMALL = 32_000_000  # parameters

T = TypeVar("T")
U = TypeVar("U")


def lane_count(parameters: int, threads: int) -> int:
    """How many pieces of a batch to compute side by side: `threads` for a small model, else 1."""
    return threads if parameters <= SMALL else 1


class Lanes:
    """A pool of threads, each of which computes on one core.

    The results come back in the order of the items, so they depend on how the work was cut but
    never on the threads' speed. A single lane computes in the caller's thread, with all of torch's
    threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count)

    def run(self, function: Callable[[], U]) -> U:
        """One piece of work, on one core when there are several lanes."""
        return self.map(lambda _: function(), [None])[0]

    def map(self, function: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """The function of each item, in the items' order; with one lane in this thread."""
        if self.count == 1:
            return [function(item) for item in items]
        threads = torch.get_num_threads()

        def one(item: T) -> U:
            torch.set_num_threads(1)  # of this thread's own operations
            return function(item)

        try:
            return list(self._pool.map(one, items))
        finally:
            torch.set_num_threads(threads)

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()
