"""The limiter of calls: order, bound, errors, and askers that go away."""

from __future__ import annotations

import asyncio

import pytest

from phikit.synth.limiter import ConcurrencyLimiter


def test_calls_are_made_in_their_order_and_so_many_at_a_time() -> None:
    begun: list[int] = []
    now = most = 0

    async def call(number: int) -> int:
        nonlocal now, most
        begun.append(number)
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.001 * (number % 3))
        now -= 1
        if number == 7:
            raise ValueError("seven")
        return number

    async def work() -> None:
        limiter: ConcurrencyLimiter[int] = ConcurrencyLimiter(3)
        asked = [asyncio.create_task(limiter.run(lambda n=n: call(n))) for n in range(20)]
        await asyncio.sleep(0)
        asked[15].cancel()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [a for a in answers if isinstance(a, int)] == [
            n for n in range(20) if n not in (7, 15)
        ]
        assert str(answers[7]) == "seven" and isinstance(answers[15], asyncio.CancelledError)
        assert await limiter.run(lambda: call(20)) == 20  # every slot is free again
        with pytest.raises(ValueError, match="seven"):
            await limiter.run(lambda: call(7))

    asyncio.run(work())
    assert begun == [*(n for n in range(20) if n != 15), 20, 7] and most == 3


def test_an_answer_is_followed_by_a_call_before_the_next_is_looked_at() -> None:
    said: list[str] = []

    async def work() -> None:
        gate = asyncio.Event()

        async def call(number: int) -> None:
            said.append(f"begins {number}")
            if number < 3:
                await gate.wait()
                said.append(f"answered {number}")

        limiter: ConcurrencyLimiter[None] = ConcurrencyLimiter(3)
        asked = [asyncio.create_task(limiter.run(lambda n=n: call(n))) for n in range(6)]
        await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(*asked)

    asyncio.run(work())
    assert said[3:5] == ["answered 0", "begins 3"]
