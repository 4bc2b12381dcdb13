from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.data.mix import PHI4_WEIGHTS, Share, mix, normalised
from phikit.errors import PhikitError

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=40)


@given(sizes, st.integers(1, 3000), st.integers(0, 5))
def test_every_epoch_uses_every_document_once_before_any_is_repeated(lengths, tokens, seed) -> None:
    array = np.array(lengths, np.int64)
    order = mix(array, [Share("web", np.arange(len(array)), tokens)], seed).order.tolist()
    n = len(lengths)
    for start in range(0, len(order) - n + 1, n):
        assert sorted(order[start : start + n]) == list(range(n))
    tail = order[len(order) - len(order) % n :]
    assert len(set(tail)) == len(tail)


@given(sizes, st.integers(1, 3000))
def test_the_budget_is_met_to_half_a_document(lengths, tokens) -> None:
    array = np.array(lengths, np.int64)
    stats = mix(array, [Share("web", np.arange(len(array)), tokens)], 0).stats["web"]
    assert abs(stats["tokens"] - tokens) <= max(lengths) / 2
    assert stats["unique_tokens"] == sum(lengths)
    assert stats["epochs"] == round(stats["tokens"] / sum(lengths), 2)


def test_shares_are_met_everywhere_in_the_order() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(5, 60, 3000)
    shares = [
        Share("code", np.arange(0, 1000), 20_000),
        Share("synthetic", np.arange(1000, 3000), 60_000),
    ]
    mixture = mix(lengths, shares, seed=4)
    for part in np.array_split(np.arange(len(mixture.order)), 10):
        tokens = Counter[int]()
        for i in part:
            tokens[int(mixture.share[i])] += int(lengths[mixture.order[i]])
        assert tokens[0] / tokens.total() == pytest.approx(0.25, abs=0.05)
    assert mixture.stats["code"]["share"] == pytest.approx(0.25, abs=0.01)


def test_epochs_have_different_orders_and_seeds_too() -> None:
    lengths = np.full(30, 10, np.int64)
    share = [Share("web", np.arange(30), 600)]
    first, again, other = (mix(lengths, share, seed).order for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:30], first[30:])


def test_documents_named_twice_are_drawn_twice() -> None:
    mixture = mix(np.array([10, 10]), [Share("long", np.array([0, 1, 1]), 30)], 0)
    assert sorted(mixture.order.tolist()) == [0, 1, 1]
    assert mixture.stats["long"]["unique_tokens"] == 20


def test_weights_are_normalised_and_nothing_is_missing_in_silence() -> None:
    present = dict.fromkeys(PHI4_WEIGHTS, 1000)
    assert normalised(PHI4_WEIGHTS, present) == pytest.approx(PHI4_WEIGHTS)
    assert normalised({"web": 2, "code": 6, "x": 0}, {"web": 1, "code": 1, "x": 9}) == {
        "code": 0.75,
        "web": 0.25,
    }
    with pytest.raises(PhikitError, match=r"weight to acquired, code.*web \(5 tokens\)"):
        normalised({"web": 1, "code": 1, "acquired": 1}, {"web": 5})
    with pytest.raises(PhikitError, match="data of class wep"):
        normalised({"web": 1}, {"web": 5, "wep": 5})
    with pytest.raises(PhikitError, match="must be positive"):
        normalised({"web": 0}, {"web": 5})
    with pytest.raises(PhikitError, match="positive"):
        normalised({"web": float("nan")}, {"web": 5})
