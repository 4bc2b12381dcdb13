import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from phikit.data.pack import IGNORE, Batches, pack
from phikit.errors import PhikitError

PAD = 9999


@st.composite
def examples(draw, masks: bool = True):
    """Examples whose every token is unique, so that each can be followed."""
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=30))
    out, next_id = [], 0
    for size in sizes:
        mask = None
        if masks and draw(st.booleans()):
            mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
        out.append((list(range(next_id, next_id + size)), mask))
        next_id += size
    return out


def wanted(example) -> list[int]:
    """The tokens to be predicted: the trained ones, a document's first excepted."""
    ids, mask = example
    return [i for n, i in enumerate(ids) if n and (mask is None or mask[n])]


def packed(given_examples, *args, **kwargs):
    try:
        return pack(given_examples, *args, **kwargs)
    except PhikitError:
        assert not any(wanted(e) for e in given_examples)
        return None


@given(examples(), st.integers(1, 24), st.integers(1, 8))
def test_every_trained_token_is_a_target_exactly_once(exs, length, window) -> None:
    rows = packed(exs, length, PAD, window=window)
    if rows is None:
        return
    batch = rows.batch(range(len(rows)))
    targets = batch.targets_BL[batch.targets_BL != IGNORE].tolist()
    assert Counter(targets) == Counter(i for e in exs for i in wanted(e))
    assert rows.stats["trained"] == len(targets)


@given(examples(), st.integers(1, 24))
def test_targets_follow_their_inputs_within_one_document(exs, length) -> None:
    rows = packed(exs, length, PAD)
    if rows is None:
        return
    batch = rows.batch(range(len(rows)))
    follows = {a: b for ids, _ in exs for a, b in itertools.pairwise(ids)}
    for i, t in zip(batch.ids_BL.ravel().tolist(), batch.targets_BL.ravel().tolist(), strict=True):
        if t != IGNORE:
            assert follows[i] == t


@given(examples(), st.integers(1, 24))
def test_segments_and_positions_restart_with_each_document(exs, length) -> None:
    rows = packed(exs, length, PAD)
    if rows is None:
        return
    batch = rows.batch(range(len(rows)))
    document = {i: n for n, (ids, _) in enumerate(exs) for i in ids}
    for ids, positions, segments in zip(
        batch.ids_BL.tolist(), batch.positions_BL.tolist(), batch.segments_BL.tolist(), strict=True
    ):
        used = sum(s > 0 for s in segments)
        assert ids[used:] == [PAD] * (length - used)
        assert positions[used:] == segments[used:] == [0] * (length - used)
        assert sorted(segments[:used]) == segments[:used]
        assert set(segments[:used]) == set(range(1, len(set(segments[:used])) + 1))
        for n in range(used):
            same = n > 0 and segments[n] == segments[n - 1]
            assert positions[n] == (positions[n - 1] + 1 if same else 0)
            if same:
                assert ids[n] == ids[n - 1] + 1
                assert document[ids[n]] == document[ids[n - 1]]


@given(examples(), st.integers(2, 24))
def test_truncation_keeps_the_beginning_and_counts(exs, length) -> None:
    rows = packed([(i[: length + 1], m and m[: length + 1]) for i, m in exs], length, PAD)
    if rows is None:
        return
    cut = pack(exs, length, PAD, overlong="truncate")
    assert np.array_equal(cut.inputs, rows.inputs)
    assert np.array_equal(cut.targets, rows.targets)
    assert cut.stats["truncated"] == sum(len(i) > length + 1 for i, _ in exs)
    assert cut.stats["tokens_cut"] == sum(max(0, len(i) - length - 1) for i, _ in exs)


def test_rows_are_well_filled_and_rows_deterministic() -> None:
    rng = np.random.default_rng(1)
    exs = [(rng.integers(0, 100, n), None) for n in rng.integers(2, 200, 5000)]
    first, second = pack(exs, 256, 0), pack(exs, 256, 0)
    assert np.array_equal(first.inputs, second.inputs)
    assert np.array_equal(first.row_segments, second.row_segments)
    assert first.stats["fill"] > 0.97


@given(st.integers(1, 9), st.integers(0, 20), st.integers(0, 3))
def test_saved_state_goes_on_with_the_same_batches(batch_rows, steps, seed) -> None:
    rows = pack([(list(range(n, n + 9)), None) for n in range(0, 63, 9)], 8, PAD)
    one, two = Batches(rows, batch_rows, seed), Batches(rows, batch_rows, seed)
    for _ in range(steps):
        next(one)
    two.load_state(one.state())
    for _ in range(4):
        assert torch.equal(next(one).ids_BL, next(two).ids_BL)


@given(st.integers(1, 9), st.integers(1, 4))
def test_every_epoch_shows_every_row_once_in_a_new_order(batch_rows, epochs) -> None:
    rows = pack([(list(range(n * 9, n * 9 + 9)), None) for n in range(30)], 8, PAD)
    batches = Batches(rows, batch_rows, seed=5)
    seen: list[int] = []
    while len(seen) < 30 * epochs:
        batch = next(batches)
        assert batch.ids_BL.shape == (batch_rows, 8)
        seen += batch.ids_BL[:, 0].tolist()
    chunks = [seen[n * 30 : n * 30 + 30] for n in range(epochs)]
    assert all(sorted(c) == [n * 9 for n in range(30)] for c in chunks)
    assert len({tuple(c) for c in chunks}) == epochs


def test_tensors_have_the_stated_types() -> None:
    batch = pack([([1, 2, 3], [False, False, True])], 4, 0).batch([0])
    assert batch.ids_BL.tolist() == [[1, 2, 0, 0]]
    assert batch.targets_BL.tolist() == [[IGNORE, 3, IGNORE, IGNORE]]
    assert batch.ids_BL.dtype == batch.targets_BL.dtype == batch.positions_BL.dtype == torch.int64
    assert batch.segments_BL.dtype == torch.int32


def test_user_errors_are_explained() -> None:
    with pytest.raises(PhikitError, match="none of 2 examples"):
        pack([([1], None), ([1, 2], [True, False])], 4, 0)
    with pytest.raises(PhikitError, match="length 0"):
        pack([([1, 2], None)], 0, 0)
    with pytest.raises(PhikitError, match="example 0 has 2 ids but a mask of 1"):
        pack([([1, 2], [True])], 4, 0)
    rows = pack([([1, 2, 3], None)], 4, 0)
    with pytest.raises(PhikitError, match="another run"):
        Batches(rows, 1, seed=1).load_state(Batches(rows, 1, seed=2).state())
