"""What a SambaY decoder keeps of the rows it is generating.

Shapes: N rows, M Mamba layers, A window layers, C taps of the convolution less one, I channels,
S states, E key-value heads, P pairs of them, W window, T positions, K head size, V = 2 K.

Two parts, of different kinds:

- `Slots`: of fixed size for each row, however long it is. Mamba's states and the window layers'
  latest keys and values, in a ring (position p lies in slot p mod W: without positional encoding
  and behind a softmax their order does not matter). About 24 MB a row for the released model.
- `SharedKV`: keys and values of all positions, once, for the layer of full attention and all
  cross-attention layers. This is the only part that grows: 5 KB a position.

Rows in use lie at the front, 0 ... N - 1, and a step touches exactly them. `add` opens empty rows
at the end, `fork` copies one into several, `keep` drops, moves and reorders.

**For a paged engine.** The model touches the growing part through three methods only, `reserve`,
`write` and `attend`. An engine that keeps blocks and shares prefixes passes its own object with
these methods (`Growing`), made for the rows of one call, and holds `Slots` beside its tables of
blocks: one slot per row. What a prefix cache must store besides blocks is a copy of one slot,
taken where a prompt's shared part ends (`Slots.read`, `Slots.write`): states cannot be cut back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from phikit.errors import PhikitError
from phikit.models.flash.attention import Piece, attend_step
from phikit.models.flash.config import FlashConfig, Kind

#: positions of a piece of the growing part: products with pieces from here on run at full speed
PIECE = 1024


class Growing(Protocol):
    """The keys and values of all positions, for the rows of one call."""

    def reserve(self, rows: int, positions: int) -> None:
        """Makes room, before a call that will write up to this many positions."""

    def write(self, rows_N: Tensor, positions_NL: Tensor, valid_NL: Tensor | None, k_NELK: Tensor,
              v_NPLV: Tensor) -> None:  # fmt: skip
        """Stores new positions of these rows; those that are not valid are padding."""

    def attend(self, rows_N: Tensor | None, q_NERK: Tensor, length_N: Tensor) -> Tensor:
        """As `attention.attend_step`; rows None for the first ones. Lengths are on the CPU."""


class SharedKV:
    """Keys [N, E, T, K] and values [N, P, T, V] in pieces of T positions, as many as are needed.

    A step reads as many pieces, of every row, as the longest row needs. Growing copies nothing.
    """

    def __init__(
        self, config: FlashConfig, dtype: torch.dtype, device: torch.device, size: int = PIECE
    ) -> None:
        self.config, self.dtype, self.device, self.size = config, dtype, device, size
        self.capacity = 0  # rows
        self.pieces: list[Piece] = []

    def reserve(self, rows: int, positions: int) -> None:
        """Makes room for so many rows and positions; what is stored stays."""
        if rows > self.capacity:
            self.capacity = max(rows, self.capacity * 3 // 2)
            self.pieces = [self._widened(piece) for piece in self.pieces]
        while len(self.pieces) * self.size < positions:
            self.pieces.append(self._piece())

    def _piece(self) -> Piece:
        # zeros, because what lies past a row's length is multiplied by weight 0 and must be finite
        n, e, k = self.capacity, self.config.kv_heads, self.config.head_dim
        return (
            torch.zeros(n, e, self.size, k, dtype=self.dtype, device=self.device),
            torch.zeros(n, e // 2, self.size, 2 * k, dtype=self.dtype, device=self.device),
        )

    def _widened(self, piece: Piece) -> Piece:
        new = self._piece()
        for mine, old in zip(new, piece, strict=True):
            mine[: len(old)] = old
        return new

    def write(self, rows_N: Tensor, positions_NL: Tensor, valid_NL: Tensor | None, k_NELK: Tensor,
              v_NPLV: Tensor) -> None:  # fmt: skip
        """Stores keys and values of new positions; those that are not valid are left out."""
        rows_NL = rows_N[:, None].expand_as(positions_NL)
        new = (k_NELK.transpose(1, 2), v_NPLV.transpose(1, 2))  # as indexing twice wants it
        low, high = int(positions_NL.min()) // self.size, int(positions_NL.max()) // self.size
        for index in range(low, min(high + 1, len(self.pieces))):
            chosen_NL = positions_NL // self.size == index
            if valid_NL is not None:
                chosen_NL = chosen_NL & valid_NL
            at = rows_NL[chosen_NL], positions_NL[chosen_NL] - index * self.size
            for store, values in zip(self.pieces[index], new, strict=True):
                store[at[0], :, at[1]] = values[chosen_NL]

    def attend(self, rows_N: Tensor | None, q_NERK: Tensor, length_N: Tensor) -> Tensor:
        """Attention of one new position per row over its first `length_N` positions."""
        needed = self.pieces[: -(-int(length_N.max()) // self.size)]
        chosen = slice(len(length_N)) if rows_N is None else rows_N
        return attend_step(q_NERK, [(k[chosen], v[chosen]) for k, v in needed], length_N)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies whole rows, all at once."""
        for store in (store for piece in self.pieces for store in piece):
            store[target] = store[source]


@dataclass
class Slots:
    """The part of fixed size, one slot for each row.

    Attributes:
        conv: the latest inputs of the convolutions [M, N, C, I].
        ssm: Mamba's states [M, N, S, I], in float32.
        k, v: the rings [A, N, E, W, K] and [A, N, P, W, V].
    """

    conv: Tensor
    ssm: Tensor
    k: Tensor
    v: Tensor

    @staticmethod
    def empty(config: FlashConfig, rows: int, dtype: torch.dtype, device: torch.device) -> Slots:
        """Zeros: the state at the start of `rows` sequences. `ssm` is at least float32."""
        m, a = len(config.of_kind(Kind.MAMBA)), len(config.of_kind(Kind.WINDOW))
        e, k, w, i = config.kv_heads, config.head_dim, config.sliding_window, config.inner_size
        wide = torch.float64 if dtype == torch.float64 else torch.float32

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=kind, device=device)

        return Slots(
            zeros(m, rows, config.conv_width - 1, i),
            zeros(m, rows, config.state_size, i, kind=wide),
            zeros(a, rows, e, w, k),
            zeros(a, rows, e // 2, w, 2 * k),
        )

    def tensors(self) -> tuple[Tensor, ...]:
        """All that is held; every tensor has the rows in its second dimension."""
        return self.conv, self.ssm, self.k, self.v

    @property
    def rows(self) -> int:
        """How many sequences it has room for."""
        return self.conv.shape[1]

    def read(self, rows: Tensor) -> Slots:
        """Copies of these rows' slots."""
        return Slots(*(t[:, rows] for t in self.tensors()))

    def write(self, rows: Tensor, slots: Slots) -> None:
        """Copies other slots over these rows'."""
        for mine, other in zip(self.tensors(), slots.tensors(), strict=True):
            mine[:, rows] = other

    @property
    def bytes_per_row(self) -> int:
        """What one sequence takes, whatever its length."""
        return sum(t[:, :1].numel() * t.element_size() for t in self.tensors())


class FlashState:
    """All that is kept of the rows in use.

    Attributes:
        slots: see `Slots`; it may hold more rows than are in use.
        full: see `Growing`.
        lengths: how many positions each row in use holds, on the CPU.
    """

    def __init__(
        self, config: FlashConfig, dtype: torch.dtype, device: torch.device | str = "cpu",
        full: Growing | None = None,
    ) -> None:  # fmt: skip
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.slots = Slots.empty(config, 0, dtype, self.device)
        self.full: Growing = full or SharedKV(config, dtype, self.device)
        self.lengths = torch.zeros(0, dtype=torch.int64)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    def add(self, count: int = 1) -> None:
        """Opens empty rows at the end."""
        n = self.rows + count
        self._fit(n)
        self.slots.conv[:, self.rows : n] = 0
        self.slots.ssm[:, self.rows : n] = 0
        self.lengths = torch.cat((self.lengths, torch.zeros(count, dtype=torch.int64)))

    def keep(self, rows: Sequence[int]) -> None:
        """The rows in use become these, in this order; a row named twice is forked.

        Only what changes its place is copied: close a gap by putting the last row into it.

        Raises:
            PhikitError: one of them is not in use, or the growing part is an engine's own.
        """
        wrong = [r for r in rows if not 0 <= r < self.rows]
        if wrong:
            raise PhikitError(f"rows {wrong} are not in use; there are {self.rows}")
        if not isinstance(self.full, SharedKV):
            raise PhikitError(
                "this state's keys and values are kept elsewhere",
                "move the slots with Slots.read and Slots.write, and the blocks where they lie",
            )
        index = torch.tensor(list(rows), dtype=torch.int64)
        self._fit(len(rows))
        self.full.reserve(len(rows), 0)
        target = (index != torch.arange(len(rows))).nonzero().squeeze(1)
        if len(target):
            source, to = index[target].to(self.device), target.to(self.device)
            self.slots.write(to, self.slots.read(source))
            self.full.move(source, to)
        self.lengths = self.lengths[index]

    def _fit(self, rows: int) -> None:
        have = self.slots.rows
        if rows > have:
            grown = Slots.empty(self.config, max(rows, have * 3 // 2), self.dtype, self.device)
            grown.write(torch.arange(have), self.slots)
            self.slots = grown

    def fork(self, row: int, count: int) -> None:
        """Adds `count` copies of a row at the end."""
        self.keep([*range(self.rows), *[row] * count])
