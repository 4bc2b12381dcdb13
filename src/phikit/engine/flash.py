"""Runs phi-4-mini-flash: states in slots, one layer's keys and values in blocks.

Shapes: N rows, B pieces, L positions of a piece, E key-value heads, P pairs of them, R query heads
of one, K head size, V = 2 K, S positions of a block, J blocks of a table.

The arithmetic is the model's own (`models.flash.model`); here is where its state lives. Mamba's
states and the windows' rings are of fixed size and lie in slots; the keys and values of the one
layer of full attention, which all cross-attention reads, lie in blocks that rows may share.
A prompt stops at that layer: nothing above it is computed but for the token that a row feeds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from phikit.engine.flash_pool import FlashPool, FlashPool8
from phikit.engine.native.build import Compiler, library
from phikit.engine.native.flash import Blocks, FlashStep, obstacle
from phikit.engine.pool import zeros
from phikit.engine.runner import Piece, Rows, RowStates
from phikit.errors import PhikitError
from phikit.models.flash.attention import attend_step
from phikit.models.flash.config import FlashConfig
from phikit.models.flash.model import Flash
from phikit.models.flash.state import FlashState, Slots

_TOGETHER = 2048  # padded positions of prompts computed at once
_READ = 1024  # positions of the cache brought together at once


class FlashStates:
    """The slots of a `FlashRunner`: `runner.RowStates`. The lowest free one is taken."""

    def __init__(self, config: FlashConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        one = Slots.empty(config, 1, dtype, torch.device("meta"))
        self.bytes_per_slot = one.bytes_per_row
        self.slots = Slots.empty(config, 0, dtype, device)
        self._free: list[int] = []

    def allocate(self, slots: int) -> None:
        wanted = Slots.empty(self.config, slots, self.dtype, torch.device("meta"))
        made = (zeros(tuple(t.shape), t.dtype, self.device) for t in wanted.tensors())
        self.slots, self._free = Slots(*made), list(range(slots))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self) -> int:
        slot = self._next()
        # what the rings hold is not looked at before it is written
        self.slots.conv[:, slot] = 0
        self.slots.ssm[:, slot] = 0
        return slot

    def fork(self, slot: int) -> int:
        new = self._next()
        for store in self.slots.tensors():
            store[:, new] = store[:, slot]
        return new

    def release(self, slot: int) -> None:
        if slot in self._free:
            raise PhikitError(f"slot {slot} of the states was released twice")
        heapq.heappush(self._free, slot)

    def _next(self) -> int:
        if not self._free:
            raise PhikitError(f"all {self.slots.rows} slots of the states are in use")
        return heapq.heappop(self._free)


class Paged:
    """The growing part of a state (`models.flash.state.Growing`), in blocks, for one call.

    Args:
        table_NJ: the blocks of the rows, in the order in which the call has them.
    """

    def __init__(self, pool: FlashPool, table_NJ: Tensor) -> None:
        self.pool, self.table_NJ = pool, table_NJ

    def reserve(self, rows: int, positions: int) -> None:
        """The scheduler has seen to it."""

    def write(self, rows_N: Tensor, positions_NL: Tensor, valid_NL: Tensor | None, k_NELK: Tensor,
              v_NPLV: Tensor) -> None:  # fmt: skip
        size = self.pool.size
        column_NL = (positions_NL // size).clamp(max=self.table_NJ.shape[1] - 1)
        block_T, offset_T = self.table_NJ.gather(1, column_NL).flatten(), positions_NL.flatten()
        offset_T = offset_T % size
        real = slice(None) if valid_NL is None else valid_NL.flatten().nonzero().squeeze(1)
        k_TEK, v_TPV = (t.transpose(1, 2).flatten(0, 1)[real] for t in (k_NELK, v_NPLV))
        self.pool.write(block_T[real], offset_T[real], k_TEK, v_TPV)

    def attend(self, rows_N: Tensor | None, q_NERK: Tensor, length_N: Tensor) -> Tensor:
        return attend_step(q_NERK, self._pieces(int(length_N.max())), length_N)

    def _pieces(self, positions: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.pool.size
        each = max(1, _READ // size)
        for first in range(0, -(-positions // size), each):
            part_NJ = self.table_NJ[:, first : first + each]
            yield self.pool.read(part_NJ)


class FlashRunner:
    """A `runner.Runner` of a `Flash`.

    In bfloat16 on a CPU with a compiler, steps go through the C kernels; else through torch.

    Args:
        int8_cache: keep the growing part in 8 bits, half the memory and half the reading.
    """

    original: int | None = None
    adapters: frozenset[str] = frozenset()  # none by request; an active one is the model's

    def __init__(
        self, model: Flash, block_size: int = 64, compiler: Compiler | None = None,
        int8_cache: bool = False,
    ) -> None:  # fmt: skip
        config = model.config
        self.model, self.config, self.block_size = model, config, block_size
        self.vocab_size, self.max_positions = config.vocab_size, config.max_positions
        self.device, self.dtype = model.model.embed_tokens.weight.device, model.dtype
        self._pool = FlashPool8 if int8_cache else FlashPool
        self.block_bytes = self._pool.block_bytes(config, block_size, self.dtype)
        self._states = FlashStates(config, self.dtype, self.device)
        self.states: RowStates | None = self._states
        self.prefilled = 0
        self.pool: FlashPool
        self._kernels: FlashStep | None = None
        if not obstacle(model) and (built := library(compiler or Compiler())) is not None:
            self._kernels = FlashStep(model, built)

    def allocate(self, blocks: int) -> None:
        self.pool = self._pool(self.config, blocks, self.block_size, self.dtype, self.device)

    def copy_blocks(self, source: Sequence[int], target: Sequence[int]) -> None:
        self.pool.copy(source, target)

    def prefill(self, pieces: Sequence[Piece], late: bool = False) -> None:
        """Pieces of like length go together, padded to the longest. Nothing is left for later."""
        left = sorted(pieces, key=lambda p: -len(p.tokens))
        while left:
            room = max(1, _TOGETHER // len(left[0].tokens))
            self._prefill_group(left[:room])
            left = left[room:]

    def settle(self) -> None:
        return

    def _prefill_group(self, group: Sequence[Piece]) -> None:
        longest, counts = len(group[0].tokens), [len(p.tokens) for p in group]
        ids_BL = np.zeros((len(group), longest), np.int64)
        table_BJ = np.zeros((len(group), max(len(p.table) for p in group)), np.int64)
        for row, piece in enumerate(group):
            ids_BL[row, : counts[row]] = piece.tokens
            table_BJ[row, : len(piece.table)] = piece.table
        state = self._state(table_BJ, self._states.slots)
        state.lengths = torch.zeros(self._states.slots.rows, dtype=torch.int64)
        rows_B = torch.tensor([p.state for p in group])
        state.lengths[rows_B] = torch.tensor([p.start for p in group])
        self.model.prefill(
            torch.from_numpy(ids_BL).to(self.device), state, torch.tensor(counts), rows_B,
            logits=False,
        )  # fmt: skip
        self.prefilled += sum(counts)

    def step(self, rows: Rows) -> Tensor:
        """Logits [N, V] after feeding one token per row; each row is another sequence."""
        slots_N = torch.from_numpy(rows.state_N).to(self.device)
        blocks = int(rows.position_N.max()) // self.block_size + 1
        if self._kernels is not None:
            return self._fast_step(rows, slots_N, blocks)
        state = self._state(rows.table_NJ[:, :blocks], self._states.slots.read(slots_N))
        state.lengths = torch.from_numpy(rows.position_N).clone()
        logits_NV = self.model.step(torch.from_numpy(rows.token_N).to(self.device), state)
        self._states.slots.write(slots_N, state.slots)
        return logits_NV

    def _fast_step(self, rows: Rows, slots_N: Tensor, blocks: int) -> Tensor:
        assert self._kernels is not None
        table_NJ = torch.from_numpy(rows.table_NJ[:, :blocks].astype(np.int32))
        position_N = torch.from_numpy(rows.position_N.astype(np.int32))
        full = Blocks(self.pool.stores, self.block_size, table_NJ, position_N + 1, position_N)
        tokens_N = torch.from_numpy(rows.token_N)
        return self._kernels(tokens_N, position_N, slots_N, self._states.slots, full)

    def _state(self, table_NJ: np.ndarray, slots: Slots) -> FlashState:
        full = Paged(self.pool, torch.from_numpy(np.ascontiguousarray(table_NJ)).to(self.device))
        state = FlashState(self.config, self.dtype, self.device, full=full)
        state.slots = slots
        return state
