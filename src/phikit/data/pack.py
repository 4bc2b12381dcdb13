"""Training examples of many lengths, packed into rows of one length.

Shapes: B rows of a batch, L positions of a row.

Every example becomes a segment: position l holds its token l and is to predict its token l + 1, so
a segment never predicts across its end and needs one position fewer than it has tokens. A first
token is never a target, having nothing before it. An over-long example is cut so that consecutive
pieces share one token: the last target of one piece is the first input of the next, and no target
is lost at the cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phikit.errors import PhikitError

IGNORE = -100
Example = tuple[Sequence[int] | NDArray[np.integer], Sequence[bool] | NDArray[np.bool_] | None]
_SHUFFLE = 0x70636B  # the random stream of row orders


@dataclass(frozen=True)
class Batch:
    """A batch for training; all tensors are [B, L].

    Attributes:
        ids_BL: int64 token ids, the pad id where there is nothing.
        targets_BL: int64, the id to predict at each position, or `IGNORE`.
        positions_BL: int64, from 0 in every segment.
        segments_BL: int32, 1, 2, ... by segment within the row, 0 for padding.
    """

    ids_BL: Tensor
    targets_BL: Tensor
    positions_BL: Tensor
    segments_BL: Tensor


@dataclass(frozen=True)
class Rows:
    """Packed rows, stored without their padding.

    Attributes:
        length: L.
        inputs, targets: int32, all segments one after the other in row order.
        segment_starts: where segment s begins in them; one entry more than segments.
        segment_examples: which example, of those that were packed, segment s is from.
        row_segments: which segments row r holds; one entry more than rows.
        stats: examples; split (cut into pieces), truncated (and tokens_cut), unusable (fewer than
            two tokens or nothing trained); positions used; trained targets; fill (share of
            positions used).
    """

    length: int
    pad_id: int
    inputs: NDArray[np.int32]
    targets: NDArray[np.int32]
    segment_starts: NDArray[np.int64]
    segment_examples: NDArray[np.int64]
    row_segments: NDArray[np.int64]
    stats: dict[str, int | float]

    def __len__(self) -> int:
        return len(self.row_segments) - 1

    def examples(self, rows: Sequence[int]) -> list[int]:
        """The numbers of the examples in the given rows, each once, in order."""
        bounds = ((self.row_segments[row], self.row_segments[row + 1]) for row in rows)
        found = [n for a, b in bounds for n in self.segment_examples[a:b].tolist()]
        return list(dict.fromkeys(found))

    def batch(self, rows: Sequence[int] | NDArray[np.integer]) -> Batch:
        """The given rows as tensors."""
        shape = (len(rows), self.length)
        ids = np.full(shape, self.pad_id, np.int64)
        targets = np.full(shape, IGNORE, np.int64)
        positions = np.zeros(shape, np.int64)
        segments = np.zeros(shape, np.int32)
        for b, row in enumerate(rows):
            first, last = self.row_segments[row], self.row_segments[row + 1]
            starts = self.segment_starts[first : last + 1]
            begin, end = starts[0], starts[-1]
            sizes = np.diff(starts)
            ids[b, : end - begin] = self.inputs[begin:end]
            targets[b, : end - begin] = self.targets[begin:end]
            positions[b, : end - begin] = np.arange(begin, end) - np.repeat(starts[:-1], sizes)
            segments[b, : end - begin] = np.repeat(np.arange(1, len(sizes) + 1), sizes)
        return Batch(*(torch.from_numpy(a) for a in (ids, targets, positions, segments)))


def pack(
    examples: Sequence[Example],
    length: int,
    pad_id: int,
    overlong: Literal["split", "truncate"] = "split",
    window: int = 8192,
) -> Rows:
    """Packs examples into rows by best-fit decreasing, within windows of segments.

    Args:
        examples: (ids, which of them are trained on; None: all).
        length: positions per row.
        overlong: what happens to an example with more than `length` + 1 tokens: "split" into
            pieces (pretraining), or "truncate" (chat), which is counted in `stats`.
        window: how many segments are sorted and fitted together. Examples far apart in the given
            order never share a row, and memory and time stay linear.

    Raises:
        PhikitError: there is nothing to train on, or `length` is less than 1.
    """
    if length < 1:
        raise PhikitError(f"rows of length {length} hold nothing", "give a length of at least 1")
    ids, targets, sizes, numbers, stats = _flatten(examples, length, overlong)
    begin, size, example = _pieces(sizes, numbers, length)
    trained = np.add.reduceat(targets != IGNORE, begin) if len(begin) else np.zeros(0, np.int64)
    begin, size, example = (x[trained > 0] for x in (begin, size, example))
    if not len(begin):
        raise PhikitError(
            f"none of {len(examples)} examples has a token to train on",
            "is the data empty, or every assistant answer beyond the row length?",
        )
    order, row_segments = _best_fit(size, length, window)
    begin, size, example = begin[order], size[order], example[order]
    starts = np.concatenate([[0], np.cumsum(size)])
    take = np.arange(starts[-1]) + np.repeat(begin - starts[:-1], size)
    rows = len(row_segments) - 1
    stats |= {
        "segments": len(size),
        "rows": rows,
        "positions": int(starts[-1]),
        "trained": int(trained.sum()),
        "fill": round(float(starts[-1]) / (rows * length), 4),
    }
    return Rows(length, pad_id, ids[take], targets[take], starts, example, row_segments, stats)


def _flatten(
    examples: Sequence[Example], length: int, overlong: str
) -> tuple[
    NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.int64],
    dict[str, int | float],
]:  # fmt: skip
    """All inputs and targets one after the other, how many each usable example has, and which
    examples those are."""
    inputs: list[NDArray[np.int32]] = []
    targets: list[NDArray[np.int32]] = []
    numbers: list[int] = []
    counts = {"examples": len(examples), "split": 0, "truncated": 0, "tokens_cut": 0, "unusable": 0}
    for number, (tokens, mask) in enumerate(examples):
        ids = np.asarray(tokens, dtype=np.int32)
        if mask is not None and len(mask) != len(ids):
            raise PhikitError(f"example {number} has {len(ids)} ids but a mask of {len(mask)}")
        if len(ids) > length + 1:
            counts["split" if overlong == "split" else "truncated"] += 1
            if overlong == "truncate":
                counts["tokens_cut"] += len(ids) - length - 1
                ids = ids[: length + 1]
        target = ids[1:]
        if mask is not None:
            keep = np.asarray(mask, dtype=np.bool_)[1 : len(ids)]
            target = np.where(keep, target, np.int32(IGNORE))
        if len(target) == 0 or (mask is not None and not keep.any()):
            counts["unusable"] += 1
            continue
        numbers.append(number)
        inputs.append(ids[:-1])
        targets.append(target)
    sizes = np.array([len(t) for t in targets], np.int64)
    empty = np.zeros(0, np.int32)
    return (
        np.concatenate([empty, *inputs]),
        np.concatenate([empty, *targets]),
        sizes,
        np.array(numbers, np.int64),
        {**counts},
    )


def _pieces(
    sizes: NDArray[np.int64], numbers: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Begin, size and example of every piece of at most `length`, in order."""
    starts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    pieces = -(-sizes // length)
    first = np.repeat(np.concatenate([[0], np.cumsum(pieces)])[:-1], pieces)
    offset = (np.arange(len(first)) - first) * length
    begin = np.repeat(starts, pieces) + offset
    size = np.minimum(np.repeat(sizes, pieces) - offset, length)
    return begin, size, np.repeat(numbers, pieces)


def _best_fit(
    sizes: NDArray[np.int64], length: int, window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of segments by row, and the bounds of the rows in that order.

    Bit c of `free` is set while some open row has exactly c free positions, so the fullest row
    that still fits a segment is found by looking for the lowest bit from its size upwards.
    """
    rows: list[list[int]] = []
    for begin in range(0, len(sizes), window):
        chunk = sizes[begin : begin + window]
        open_rows: list[list[list[int]]] = [[] for _ in range(length + 1)]
        free = 0
        for segment in np.argsort(-chunk, kind="stable").tolist():
            size = int(chunk[segment])
            fitting = free >> size
            if fitting:
                space = size + (fitting & -fitting).bit_length() - 1
                row = open_rows[space].pop()
                if not open_rows[space]:
                    free ^= 1 << space
            else:
                space, row = length, []
                rows.append(row)
            row.append(begin + segment)
            open_rows[space - size].append(row)
            free |= 1 << (space - size)
    order = np.array([segment for row in rows for segment in row], np.int64)
    return order, np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


class Batches(Iterator[Batch]):
    """Endless batches of rows, each epoch in its own order, which (seed, epoch) decides.

    A batch that the end of an epoch leaves short is filled up from the next, so every batch is
    full and every row comes once per epoch. `state` says where the iteration is, as JSON-able
    numbers; after `load_state` the same batches follow. `taken`: the last batch's rows.
    """

    def __init__(self, rows: Rows, batch_rows: int, seed: int) -> None:
        if batch_rows < 1 or not len(rows):
            raise PhikitError(f"cannot make batches of {batch_rows} rows out of {len(rows)}")
        self.rows, self.batch_rows, self.seed = rows, batch_rows, seed
        self.epoch = self.row = 0
        self.taken: list[int] = []
        self._order = self._shuffled(0)

    def __next__(self) -> Batch:
        take: list[int] = []
        while len(take) < self.batch_rows:
            if self.row == len(self.rows):
                self.epoch, self.row = self.epoch + 1, 0
                self._order = self._shuffled(self.epoch)
            new = self._order[self.row : self.row + self.batch_rows - len(take)]
            take.extend(new.tolist())
            self.row += len(new)
        self.taken = take
        return self.rows.batch(take)

    def state(self) -> dict[str, Any]:
        """Where the next batch begins, and what identifies the shards: a checkpoint keeps it."""
        return {"epoch": self.epoch, "row": self.row, **self._identity()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from a saved state.

        Raises:
            PhikitError: it was saved over other rows, or with another seed.
        """
        saved = {key: state.get(key) for key in self._identity()}
        if saved != self._identity():
            raise PhikitError(
                f"the saved position is of {saved}, but the data is {self._identity()}",
                "the checkpoint belongs to another run: remove it, or restore its data",
            )
        self.epoch, self.row = state["epoch"], state["row"]
        self._order = self._shuffled(self.epoch)

    def _identity(self) -> dict[str, int]:
        return {
            "seed": self.seed,
            "rows": len(self.rows),
            "length": self.rows.length,
            "positions": len(self.rows.inputs),
        }

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, _SHUFFLE, epoch]).permutation(len(self.rows))
