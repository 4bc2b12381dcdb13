"""The reward's end points as the report states them."""

from __future__ import annotations

import math

import pytest

from phikit.train.reward import (
    Lengths,
    accuracy_reward,
    reasoning_reward,
    repetition_reward,
    well_formed,
)

REPORT = Lengths.scaled(31_744)


@pytest.mark.parametrize(
    ("right", "length", "reward"),
    [
        (True, 0, 1.0),
        (True, 25_600, 1.0),
        (True, (25_600 + 31_744) // 2, 0.75),
        (True, 31_744, 0.5),
        (True, 40_000, 0.5),
        (False, 0, -1.0),
        (False, 1_851, -0.75),
        (False, 3_702, -0.5),
        (False, 31_744, -0.5),
    ],
)
def test_end_points(right: bool, length: int, reward: float) -> None:
    assert accuracy_reward(right, length, REPORT) == pytest.approx(reward, abs=1e-9)


def test_lengths_scale() -> None:
    tiny = Lengths.scaled(248)
    assert (tiny.longest, tiny.positive) == (248, 200)
    assert tiny.negative == pytest.approx(3_702 * 248 / 31_744)
    assert accuracy_reward(True, 224, tiny) == pytest.approx(0.75)


def test_repetition() -> None:
    assert repetition_reward(range(100)) == 0.0
    assert repetition_reward([]) == 0.0
    # one 5-gram 6 times among 59: each other 5-gram that overlaps its copies is made unlike
    ids: list[int] = []
    for i in range(6):
        ids += [1, 2, 3, 4, 5, *range(100 + 10 * i, 105 + 10 * i)]
    assert repetition_reward(ids) == pytest.approx(-max(1 / 56, 6 / (60 / 5)))
    # a loop of two tokens: both 5-grams are frequent
    assert repetition_reward([1, 2] * 20) == pytest.approx(-max(2 / 36, 18 / 8))
    # exactly five times is not yet frequent
    assert repetition_reward(ids[:50]) == 0.0


def test_overrides_and_weights() -> None:
    ids = list(range(100))
    full = reasoning_reward(ids, True, True, True, REPORT)
    assert full == pytest.approx(8 / 13)
    assert reasoning_reward(ids, True, False, True, REPORT) == pytest.approx(-0.5 * 8 / 13)
    assert reasoning_reward(ids, True, True, False, REPORT) == pytest.approx(-8 / 13)
    assert reasoning_reward(ids, True, False, False, REPORT) == pytest.approx(-0.5 * 8 / 13)
    looped = [1, 2] * 50
    expected = 8 / 13 + repetition_reward(looped) / 13
    assert reasoning_reward(looped, True, True, True, REPORT) == pytest.approx(expected)
    assert math.isfinite(reasoning_reward([], False, False, False, REPORT))


@pytest.mark.parametrize(
    ("text", "ok"),
    [
        ("<think>a</think>b", True),
        (" <think>\na\n</think>\nb", True),
        ("a", False),
        ("<think>a", False),
        ("<think></think>b", False),
        ("<think>a</think>", False),
        ("a<think>b</think>c", False),
        ("<think>a<think>b</think>c", False),
        ("<think>a</think>b</think>c", False),
    ],
)
def test_well_formed(text: str, ok: bool) -> None:
    assert well_formed(text) is ok
