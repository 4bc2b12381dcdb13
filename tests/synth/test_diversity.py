"""What was said before is seen, by n-grams and by compression; what is new is not."""

from __future__ import annotations

from random import Random

from phikit.synth.diversity import Nearness, compression, distinct


def words(seed: int, count: int = 60) -> str:
    rng = Random(seed)
    return " ".join(f"word{rng.randrange(3000)}" for _ in range(count))


def test_near_is_what_shares_words_in_their_order() -> None:
    near = Nearness()
    near.add(words(1))
    half = words(1).split()[:30]
    assert near.share(words(1)) == 1.0 and near.share(words(2)) == 0.0
    assert 0.3 < near.share(" ".join(half) + " " + words(3, 30)) < 0.5
    assert near.share("too short") == 0.0 and near.share("") == 0.0


def test_a_repetition_compresses_to_nothing_beside_the_first() -> None:
    near = Nearness()
    fresh = near.gain(words(1))
    near.add(words(1))
    assert near.gain(words(1)) > 0.8 and fresh < 0.1 and near.gain(words(2)) < 0.4
    swapped = words(1).split()
    swapped[::7] = ["other"] * len(swapped[::7])  # no 8-gram survives
    assert near.share(" ".join(swapped)) == 0.0 and near.gain(" ".join(swapped)) > 0.6
    for seed in range(2, 60):
        near.add(words(seed, 400))
    assert near.gain(words(1)) < 0.5  # it has gone out of the window


def test_measures_of_a_corpus() -> None:
    varied, same = [words(i) for i in range(20)], [words(1)] * 20
    assert distinct(varied, 3) > 0.99 and distinct(same, 3) < 0.06
    assert compression(same) > 3 * compression(varied) > 0
    assert distinct([], 1) == compression([]) == 0.0
