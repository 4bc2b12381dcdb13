"""What a SambaY decoder keeps of the rows it is generating.

Shapes: N rows, M Mamba layers, A window layers, C taps of the convolution less one, I channels,
S states, E key-value heads, P pairs of them, W window, T positions, K head size, V = 2 K.

Two parts, of different kinds:

- `Slots`: of fixed size for each row, however long it is. Mamba's states and the window layers'
  latest keys and values, in a ring (position p lies in slot p mod W: without positional encoding
  and behind a softmax their order does not matter). About 25 MB a row for the released model.
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
from phikit.models.flash.attention import attend_step
from phikit.models.flash.config import FlashConfig, Kind

_ALIGN = 64  # positions by which the growing part's length steps


class Growing(Protocol):
    """The keys and values of all positions, for the rows of one call."""

    def reserve(self, rows: int, positions: int) -> None:
        """Makes room, before a call that will write up to this many positions."""

    def write(self, rows_N: Tensor, positions_NL: Tensor, valid_NL: Tensor | None, k_NELK: Tensor,
              v_NPLV: Tensor) -> None:  # fmt: skip
        """Stores new positions of these rows; those that are not valid are padding."""

    def attend(self, rows_N: Tensor | None, q_NERK: Tensor, length_N: Tensor) -> Tensor:
        """As `attention.attend_step`; rows None for all at the front."""


class SharedKV:
    """Contiguous keys [N, E, T, K] and values [N, P, T, V] that grow as rows do.

    A step reads up to the longest row's length of every row.
    """

    def __init__(self, config: FlashConfig, dtype: torch.dtype, device: torch.device) -> None:
        e, k = config.kv_heads, config.head_dim
        self.k = torch.zeros(0, e, 0, k, dtype=dtype, device=device)
        self.v = torch.zeros(0, e // 2, 0, 2 * k, dtype=dtype, device=device)

    def reserve(self, rows: int, positions: int) -> None:
        """Room doubles when it is short, so that growing costs one copy per doubling."""
        have_rows, _, have, _ = self.k.shape
        if rows > have_rows:
            have_rows = max(rows, have_rows * 3 // 2)
        if positions > have:
            have = -(-max(positions, have * 3 // 2) // _ALIGN) * _ALIGN
        self.k, self.v = _fitted(self.k, have_rows, have), _fitted(self.v, have_rows, have)

    def write(self, rows_N: Tensor, positions_NL: Tensor, valid_NL: Tensor | None, k_NELK: Tensor,
              v_NPLV: Tensor) -> None:  # fmt: skip
        rows_NL = rows_N[:, None].expand_as(positions_NL)
        for store, new in ((self.k, k_NELK), (self.v, v_NPLV)):
            new = new.transpose(1, 2)  # positions before heads, as indexing twice wants it
            if valid_NL is None:
                store[rows_NL, :, positions_NL] = new
            else:
                store[rows_NL[valid_NL], :, positions_NL[valid_NL]] = new[valid_NL]

    def attend(self, rows_N: Tensor | None, q_NERK: Tensor, length_N: Tensor) -> Tensor:
        n, longest = len(length_N), int(length_N.max())
        k, v = (self.k[:n], self.v[:n]) if rows_N is None else (self.k[rows_N], self.v[rows_N])
        ragged = length_N if int(length_N.min()) < longest else None
        return attend_step(q_NERK, k[:, :, :longest], v[:, :, :longest], ragged)

    def take(self, rows: Tensor) -> None:
        """The rows become these, copies where one is named twice."""
        self.k, self.v = self.k[rows], self.v[rows]


def _fitted(store: Tensor, rows: int, positions: int) -> Tensor:
    if store.shape[0] == rows and store.shape[2] == positions:
        return store
    # zeros, because what lies past a row's length is multiplied by weight 0 and must be finite
    fitted = store.new_zeros(rows, store.shape[1], positions, store.shape[3])
    kept = min(rows, store.shape[0])
    fitted[:kept, :, : store.shape[2]] = store[:kept]
    return fitted


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

    def _all(self) -> tuple[Tensor, ...]:
        return self.conv, self.ssm, self.k, self.v

    @property
    def rows(self) -> int:
        return self.conv.shape[1]

    def read(self, rows: Tensor) -> Slots:
        """Copies of these rows' slots."""
        return Slots(*(t[:, rows] for t in self._all()))

    def write(self, rows: Tensor, slots: Slots) -> None:
        """Copies other slots over these rows'."""
        for mine, other in zip(self._all(), slots._all(), strict=True):
            mine[:, rows] = other

    @property
    def bytes_per_row(self) -> int:
        return sum(t[:, :1].numel() * t.element_size() for t in self._all())


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
        if n > self.slots.rows:
            grown = Slots.empty(self.config, max(n, self.rows * 3 // 2), self.dtype, self.device)
            grown.write(torch.arange(self.rows), self.slots.read(torch.arange(self.rows)))
            self.slots = grown
        else:
            empty = Slots.empty(self.config, count, self.dtype, self.device)
            self.slots.write(torch.arange(self.rows, n), empty)
        self.lengths = torch.cat((self.lengths, torch.zeros(count, dtype=torch.int64)))

    def keep(self, rows: Sequence[int]) -> None:
        """The rows in use become these, in this order; a row named twice is forked.

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
        self.slots = self.slots.read(index.to(self.device))
        if self.full.k.shape[0] >= self.rows:
            self.full.take(index.to(self.device))
        self.lengths = self.lengths[index]

    def fork(self, row: int, count: int) -> None:
        """Adds `count` copies of a row at the end."""
        self.keep([*range(self.rows), *[row] * count])
