"""What the scheduler asks of a model: the seam between who computes when, and how.

The scheduler knows requests, rows, blocks and prefixes. A *runner* knows a model family: it holds
the cache's tensors, computes pieces of prompts, and feeds one token per row. `dense.DenseRunner`
runs the dense decoders. A family with other state than keys and values (SambaY's Mamba layers)
gives its runner `states`: one slot per row, and one per kept prefix end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(slots=True)
class Piece:
    """A stretch of one sequence to compute keys and values (and state) of.

    Attributes:
        tokens: what to compute; start: the position of the first one.
        table: the sequence's blocks, from position 0; those before `start` are filled.
        long: which RoPE regime (LongRoPE's long factors).
        state: the sequence's state slot, which stands at `start` and is to stand at the end.
        adapter: the LoRA adapter it is computed with; empty for none but the active one.
    """

    tokens: Sequence[int]
    start: int
    table: Sequence[int]
    long: bool = False
    state: int = -1
    adapter: str = ""


@dataclass(slots=True)
class Rows:
    """One token per row: `token_N` at `position_N`, with the row's blocks.

    A sequence may have several rows, at consecutive positions: each sees the ones before it. Not
    so where the model has states, which move on by one position a step.
    `same`: tables and rows are those of the last call, only the positions have moved on within
    the last blocks. `adapters`: of each row; empty where no row has one.
    """

    token_N: np.ndarray
    position_N: np.ndarray
    table_NJ: np.ndarray
    long_N: np.ndarray
    state_N: np.ndarray
    same: bool = False
    adapters: Sequence[str] = ()


class RowStates(Protocol):
    """State of a fixed size per sequence, in slots. Slots never move."""

    bytes_per_slot: int

    def allocate(self, slots: int) -> None:
        """Makes room for so many, once, before anything else."""
        ...

    def take(self) -> int:
        """A slot at the start of a sequence (all zeros)."""
        ...

    def fork(self, slot: int) -> int:
        """A new slot with a copy of this one's state."""
        ...

    def release(self, slot: int) -> None:
        """Gives the slot back."""
        ...


class Runner(Protocol):
    """A model, its cache's tensors, and how it computes.

    Attributes:
        original: sequences longer than this are computed under the other RoPE regime, from their
            first position on; None when there is one regime only.
        states: what rows carry beside blocks; None when blocks are all. A family with states can
            take up a prefix only where a state was kept.
        prefilled: tokens computed by `prefill` so far.
        adapters: the LoRA adapters that requests may name.
    """

    vocab_size: int
    max_positions: int
    original: int | None
    block_size: int
    block_bytes: int
    device: torch.device
    states: RowStates | None
    prefilled: int
    adapters: frozenset[str]

    def allocate(self, blocks: int) -> None:
        """Makes room for so many blocks, once, before anything else."""
        ...

    def prefill(self, pieces: Sequence[Piece], late: bool = False) -> None:
        """Computes pieces; the blocks that any of them builds on are ready.

        Args:
            late: it may be left to the next `step`, where a model's weights are read once for both;
                until then, or `settle`, the blocks must stay the pieces' own.
        """
        ...

    def settle(self) -> None:
        """Computes what was left for the next step."""
        ...

    def step(self, rows: Rows) -> Tensor:
        """Stores what the rows' tokens leave behind; their logits [N, V]."""
        ...

    def copy_blocks(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copies the contents of blocks, pair by pair; several may come from one."""
        ...
