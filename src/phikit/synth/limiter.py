"""Calls in the order in which they come, so many of them at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Generic, TypeVar

T = TypeVar("T")


class ConcurrencyLimiter(Generic[T]):
    """Makes at most `count` calls at the same time; the others wait their turn.

    A slot whose call is answered begins the next in the same step. Of hundreds of answers that come
    at once, the first is then followed by a call before the second is dealt with; otherwise all of
    them wait for one another, and come at once again the next time.
    """

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[tuple[Callable[[], Awaitable[T]], asyncio.Future[T]]] = deque()
        self._opening = False
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself keeps none alive

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the call gives, or the error that it raises."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._free and not self._opening:
            self._opening = True
            self._start(self._open())
        return await future

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open(self) -> None:
        """Opens slots one by one: the first call is on its way before the last is begun."""
        while self._waiting and self._free:
            self._free -= 1
            self._start(self._work())
            await asyncio.sleep(0)
        self._opening = False

    async def _work(self) -> None:
        try:
            while self._waiting:
                call, future = self._waiting.popleft()
                if future.done():
                    continue  # whoever asked has been cancelled
                try:
                    answer = await call()
                except Exception as error:
                    if not future.done():
                        future.set_exception(error)
                else:
                    if not future.done():
                        future.set_result(answer)
        finally:
            self._free += 1
