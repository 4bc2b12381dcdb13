"""The batch as numpy columns: one entry per row, rows in use at the front."""

from __future__ import annotations

import numpy as np

from phikit.engine.blocks import NULL
from phikit.engine.samples import Sample


def _wider(column: np.ndarray, width: int, fill: int = 0) -> np.ndarray:
    """The same column with at least so many entries per row."""
    rows, old = column.shape
    if width <= old:
        return column
    wide = np.full((rows, max(width, 2 * old)), fill, column.dtype)
    wide[:, :old] = column
    return wide


class Columns:
    """Attributes: `n` rows in use; `samples` of them; and per row

    key: of its random stream; count, limit: tokens drawn, and at most; position: where the next
    token is fed; last: that token; stop: ids that end it (-1: none); table: its blocks; long: its
    RoPE regime; tokens, logprobs, raw_logprobs: what was drawn.
    """

    def __init__(self, size: int, block_size: int) -> None:
        def whole() -> np.ndarray:
            return np.zeros(size, dtype=np.int64)

        self.size, self.block_size, self.n = size, block_size, 0
        self.samples: list[Sample] = []
        self.key = np.zeros(size, dtype=np.uint64)
        self.count, self.limit, self.position, self.last = whole(), whole(), whole(), whole()
        self.long, self.order, self.state = whole(), whole(), whole()
        self.stop = np.full((size, 1), -1, dtype=np.int64)
        self.table = np.full((size, 4), NULL, dtype=np.int64)
        self.tokens = np.zeros((size, 16), dtype=np.int32)
        self.logprobs = np.zeros((size, 16), dtype=np.float32)
        self.raw_logprobs = np.zeros((size, 16), dtype=np.float32)

    def enter(self, sample: Sample) -> None:
        """Gives a sample, whose prompt is in the cache, the next row."""
        row, request = self.n, sample.ticket.request
        drawn, stop = len(sample.tokens), request.sampling.stop_ids
        self._fit(drawn + 1)
        self.stop = _wider(self.stop, len(stop), fill=-1)
        self.table = _wider(self.table, len(sample.table), fill=NULL)
        self.key[row], self.count[row], self.limit[row] = sample.key, drawn, sample.ticket.limit
        self.position[row], self.long[row] = sample.goal, sample.long
        self.order[row], self.state[row] = sample.order, sample.state
        self.last[row] = sample.tokens[-1] if drawn else request.prompt_ids[-1]
        self.stop[row] = -1
        self.stop[row, : len(stop)] = stop
        self.table[row] = NULL
        self.table[row, : len(sample.table)] = sample.table
        self.tokens[row, :drawn] = sample.tokens
        self.logprobs[row, :drawn] = sample.logprobs
        self.raw_logprobs[row, :drawn] = sample.raw_logprobs
        self.samples.append(sample)
        self.n += 1

    def add_block(self, row: int, block: int) -> None:
        """One block more for the row's sequence."""
        table = self.samples[row].table
        self.table = _wider(self.table, len(table) + 1, fill=NULL)
        self.table[row, len(table)] = block
        table.append(block)

    def lacking(self) -> np.ndarray:
        """The rows whose next token would begin a block that they do not have yet."""
        column = self.position[: self.n] // self.block_size
        self.table = _wider(self.table, int(column.max(initial=0)) + 1, fill=NULL)
        return np.flatnonzero(self.table[np.arange(self.n), column] == NULL)

    def record(self, tokens: np.ndarray, logprobs: np.ndarray, raw: np.ndarray) -> None:
        """One token more for every row."""
        n = self.n
        self._fit(int(self.count[:n].max()) + 1)
        at = (np.arange(n), self.count[:n])
        self.tokens[at], self.logprobs[at], self.raw_logprobs[at] = tokens, logprobs, raw
        self.last[:n] = tokens
        self.count[:n] += 1
        self.position[:n] += 1

    def record_several(
        self, row_E: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, raw: np.ndarray
    ) -> np.ndarray:
        """Some tokens more, in the order of the rows, at least one for each; their places."""
        n = self.n
        more = np.bincount(row_E, minlength=n)
        self._fit(int((self.count[:n] + more).max()))
        before = np.cumsum(more) - more
        place = self.count[row_E] + np.arange(len(row_E)) - before[row_E]
        at = (row_E, place)
        self.tokens[at], self.logprobs[at], self.raw_logprobs[at] = tokens, logprobs, raw
        self.last[:n] = tokens[before + more - 1]
        self.count[:n] += more
        self.position[:n] += more
        return place

    def drawn(self, row: int) -> tuple[list[int], list[float], list[float]]:
        """What the row has drawn so far: tokens, log-probabilities, and those of the raw model."""
        count = int(self.count[row])
        return (
            self.tokens[row, :count].tolist(),
            self.logprobs[row, :count].tolist(),
            self.raw_logprobs[row, :count].tolist(),
        )

    def remove(self, gone: np.ndarray) -> None:
        """Takes rows out (booleans, one per row in use); the last rows close the gaps."""
        left = int((~gone).sum())
        target = np.flatnonzero(gone[:left])
        source = left + np.flatnonzero(~gone[left:])
        if len(target):
            for column in vars(self).values():
                if isinstance(column, np.ndarray):
                    column[target] = column[source]
            for s, t in zip(source.tolist(), target.tolist(), strict=True):
                self.samples[t] = self.samples[s]
        del self.samples[left:]
        self.n = left

    def _fit(self, count: int) -> None:
        self.tokens = _wider(self.tokens, count)
        self.logprobs = _wider(self.logprobs, count)
        self.raw_logprobs = _wider(self.raw_logprobs, count)
