"""Runs a dense decoder's steps with the C kernels, and prompts as `DenseRunner` does.

With few rows, or packed weights, a step is one call of C. With more rows and weights as they lie,
torch's products are the faster ones, and what lies between them is C.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from phikit.engine.dense import DenseRunner, RopeTable
from phikit.engine.logits import PACKED, head_product
from phikit.engine.native import products
from phikit.engine.native.between import Between
from phikit.engine.native.build import Compiler, library
from phikit.engine.native.step import DecodeStep, Pages, obstacle, packable, trained_obstacle
from phikit.engine.packed import Product
from phikit.engine.pool8 import Pool8, block_bytes8
from phikit.engine.rowwise import Rowwise
from phikit.engine.runner import Piece, Rows
from phikit.errors import PhikitError
from phikit.models.decoder import Attend, Decoder, Layer, rope_tables, rotate

_BLOCK, _BLOCK_8 = 32, 64  # positions; in 8 bits a tile of the kernels
_MOST_PACKED = 6
_TOGETHER = 256  # prompt tokens in one go; any number gives the same
_NEAR = 512  # positions from the beginning up to which prompts go through the kernels


def _end(piece: Piece) -> int:
    return piece.start + len(piece.tokens)


def _rows_of(pieces: Sequence[Piece]) -> Rows:
    """A row for every token, those near the beginning of their sequence first: what one builds on
    comes no later, and tables of like length go together."""
    told: list[tuple[int, int, int, bool]] = []  # (piece, token, position, regime)
    tables = np.zeros((len(pieces), max(len(p.table) for p in pieces)), np.int64)
    for number, piece in enumerate(pieces):
        tables[number, : len(piece.table)] = piece.table
        at = range(piece.start, _end(piece))
        told += [(number, t, p, piece.long) for t, p in zip(piece.tokens, at, strict=True)]
    told.sort(key=lambda entry: entry[2])
    which, token, position, long = np.array(told, dtype=np.int64).T
    names = [pieces[i].adapter for i in which.tolist()]
    none = np.full(len(told), -1)
    return Rows(token, position, tables[which], long, none, adapters=names if any(names) else ())


def _part(rows: Rows, part: slice) -> Rows:
    return Rows(
        rows.token_N[part], rows.position_N[part], rows.table_NJ[part], rows.long_N[part],
        rows.state_N[part], adapters=rows.adapters[part],
    )  # fmt: skip


def _joined(rows: Rows, more: Rows) -> Rows:
    """The rows of both, of which none has an adapter."""
    tables = [rows.table_NJ, more.table_NJ]
    width = max(t.shape[1] for t in tables)
    table_NJ = np.concatenate([np.pad(t, ((0, 0), (0, width - t.shape[1]))) for t in tables])
    names = ("token_N", "position_N", "long_N", "state_N")
    token, position, long, state = (
        np.concatenate((getattr(rows, name), getattr(more, name))) for name in names
    )
    return Rows(token, position, table_NJ, long, state)


class NativeRunner(DenseRunner):
    """A `runner.Runner`. Where there is no compiler, or the model is none that the kernels run
    (not bfloat16 or float32, not on the CPU), it is a `DenseRunner`. Of adapters the kernels know
    nothing: steps with them go through torch's products, and what lies between through C.

    A row's logits do not depend on how many rows go with it through the kernels. Packed bfloat16
    weights give the bits of training's forward pass where there is a matrix unit, to all that goes
    through the kernels: steps, and prompts near the beginning of a sequence.

    Args:
        block_size: 0 for the kernels' choice.
        cache: "int8" holds keys and values in 8 bits (see `pool8`): half the memory, and half of
            what a step reads of them.

    Raises:
        PhikitError: the cache is to have 8 bits, but there are no kernels.
    """

    def __init__(
        self,
        model: Decoder,
        block_size: int = 0,
        pack: int = 0,
        compiler: Compiler | None = None,
        cache: str = "",
    ) -> None:
        reason, self._built = obstacle(model), None
        if not reason:
            self._built = library(compiler or Compiler())
        self.cache8 = cache == "int8"
        block_size = block_size or (_BLOCK_8 if self.cache8 else _BLOCK)
        if self.cache8 and self._built is None:
            raise PhikitError(
                f"a cache of 8 bits needs the C kernels: {reason or 'there is no compiler'}",
                "leave it out",
            )
        packs = bool(pack) and self._built is not None and packable(model)
        super().__init__(model, block_size, 0 if packs else pack)
        self._kernels: DecodeStep | None = None
        self._between: Between | Rowwise | None = None
        if self.cache8:
            self.block_bytes = block_bytes8(model.config, block_size)
        # from there on torch's packed products are the faster ones (benchmarks/engine.py)
        self.most_rows = _MOST_PACKED if pack else products.MOST_ROWS
        wide = library(compiler or Compiler()) if not obstacle(model, torch.float32) else None
        if wide is not None:
            self._between = Between(wide, model.config, wide=True)
        self._turns = self.rope  # of steps in one call
        if self._built is not None:
            self._kernels = self._one_call(self._built, packs)
            self._between = Between(self._built, model.config)
        if packs and self._kernels is not None:
            self.most_rows = self._kernels.most_rows
        self._late: list[Piece] = []  # they wait for the next step

    def _one_call(self, built: ctypes.CDLL, packs: bool) -> DecodeStep:
        """Packed weights give the bits of training's forward pass where they can."""
        plain = packs and not self.cache8
        exact = plain and not trained_obstacle(self.model, built, self.block_size)
        if exact:
            self._turns = RopeTable(self.config, torch.float32, self.device)
        return DecodeStep(self.model, built, packs, exact)

    def allocate(self, blocks: int) -> None:
        self._late = []
        if self.cache8:
            self.pool = Pool8(self.config, blocks, self.block_size)
        else:
            super().allocate(blocks)

    def _product(self, module: nn.Module, pack: int = 0) -> Product:
        if module is self.model.lm_head and type(module) is nn.Linear and self._built is not None:
            wide = head_product(module.weight, PACKED if pack else 0)
            if wide is not None:
                return wide
        return super()._product(module, pack)

    def step(self, rows: Rows) -> Tensor:
        """Logits [N, V] after feeding one token per row."""
        n = len(rows.token_N)
        adapted = self.lora.choose(rows.adapters, n, self.device)
        if self._kernels is None or adapted or n > self.most_rows:
            self.settle()
            return super().step(rows)
        return self._with_late(self._kernels, rows)

    def _with_late(self, kernels: DecodeStep, rows: Rows) -> Tensor:
        """The step, and with it what was left for it of prompts."""
        count = sum(len(piece.tokens) for piece in self._late)
        if count > _TOGETHER:
            self.settle()
        if not self._late:
            return self._in_one(kernels, rows)
        late, self._late = _rows_of(self._late), []
        self.prefilled += count
        return self._in_one(kernels, _joined(rows, late), len(rows.token_N))

    def _in_one(self, kernels: DecodeStep, rows: Rows, wanted: int | None = None) -> Tensor:
        """The step in one call: logits [N, V] of so many rows, or of all."""
        self._plan = None  # `DenseRunner` would take rows that it has not seen for the same
        self._turns.fit(int(rows.position_N.max()) + 1)
        token_N, position_N, long_N = map(
            torch.from_numpy, (rows.token_N, rows.position_N, rows.long_N)
        )
        cos_N1R, sin_N1R = self._turns.at(position_N, long_N)
        blocks = int(rows.position_N.max()) // self.block_size + 1
        table_NJ = torch.from_numpy(rows.table_NJ[:, :blocks]).to(torch.int32)
        pages = Pages(self.pool.layers, self.block_size, table_NJ.contiguous())
        rope = (cos_N1R[:, 0], sin_N1R[:, 0])
        threads = torch.get_num_threads()
        return kernels(token_N, position_N, rope, pages, threads, wanted)

    def copy_blocks(self, source: Sequence[int], target: Sequence[int]) -> None:
        self.settle()
        super().copy_blocks(source, target)

    def settle(self) -> None:
        if self._late:
            late, self._late = self._late, []
            self.prefill_rows(late)

    def prefill(self, pieces: Sequence[Piece], late: bool = False) -> None:
        """Near the beginning of a sequence the kernels, which read each token's past by itself, are
        faster than torch's products, whose weights are not packed. A step of several rows takes
        such pieces along for little more than it takes itself: most of its time it reads weights.
        """
        few = self.most_rows <= products.MOST_ROWS or self._kernels is None
        by_rows = [p for p in pieces if not few and not p.adapter and _end(p) <= _NEAR]
        self._late += by_rows
        rest = [p for p in pieces if few or p.adapter or _end(p) > _NEAR]
        if rest or not late:
            self.settle()
        if rest:
            super().prefill(rest)

    def prefill_rows(self, pieces: Sequence[Piece]) -> None:
        """Computes pieces through the functions of steps, one row for every token."""
        rows = _rows_of(pieces)
        for start in range(0, len(rows.token_N), _TOGETHER):
            self.feed(_part(rows, slice(start, start + _TOGETHER)))
        self.prefilled += len(rows.token_N)

    def _through(
        self,
        ids_BL: Tensor,
        position_BL: Tensor,
        store: Callable[[int, Tensor, Tensor], None],
        causal: Attend,
        regime: int | None,
    ) -> None:
        """As the decoder's `hidden`, with C between the products; and of the last layer only what
        the cache keeps is computed: its attention and all after it is for logits."""
        between = self._between
        if between is None:
            super()._through(ids_BL, position_BL, store, causal, regime)
            return
        h, g = self.config.heads, self.config.kv_heads
        rope = rope_tables(self.config, position_BL, regime)
        x_MD, add_MD = self.model.model.embed_tokens(ids_BL).float().flatten(0, 1), None

        def prompts(t_MX: Tensor) -> Tensor:
            """[B, L, X], as the layers want it whose adapters go by prompts."""
            return t_MX.unflatten(0, ids_BL.shape)

        for index, (module, norms) in enumerate(
            zip(self.model.model.layers, self.norms, strict=True)
        ):
            layer = cast(Layer, module)
            qkv = layer.self_attn.qkv_proj(prompts(between.norm(x_MD, add_MD, norms[0])))
            qkv_BXLK = qkv.unflatten(-1, (h + 2 * g, -1)).transpose(1, 2)
            q_BHLK, k_BGLK, v_BGLK = qkv_BXLK.split((h, g, g), dim=1)
            k_BGLK = rotate(k_BGLK, *rope)
            store(index, k_BGLK, v_BGLK)
            if index == self.config.layers - 1:
                return
            out_BHLK = causal(index, rotate(q_BHLK, *rope), k_BGLK, v_BGLK)
            out = layer.self_attn.o_proj(out_BHLK.transpose(1, 2).flatten(2))
            both = layer.mlp.gate_up_proj(prompts(between.norm(x_MD, out.flatten(0, 1), norms[1])))
            add_MD = layer.mlp.down_proj(prompts(between.gate(both.flatten(0, 1)))).flatten(0, 1)

    def feed(self, rows: Rows) -> None:
        """A step whose logits nobody wants."""
        assert self._kernels is not None
        self._in_one(self._kernels, rows, wanted=0)

    def head(self, x_ND: Tensor) -> Tensor:
        if self._between is None:
            return super().head(x_ND)
        return self.head_product(self._between.norm(x_ND, None, self.model.model.norm.weight))

    def rows_hidden(self, rows: Rows) -> Tensor:
        """What the last layer leaves of each row: [N, D]."""
        between = self._between
        if between is None:
            return super().rows_hidden(rows)
        self.rope.fit(int(rows.position_N.max()) + 1)
        token_N, position_N, long_N = map(
            torch.from_numpy, (rows.token_N, rows.position_N, rows.long_N)
        )
        blocks = int(rows.position_N.max()) // self.block_size + 1
        table_NJ = torch.from_numpy(rows.table_NJ[:, :blocks]).to(torch.int32).contiguous()
        attend = between.attending(
            self.pool, table_NJ, position_N.to(torch.int32), self.rope.at(position_N, long_N)
        )
        x_ND, add_ND = self.model.model.embed_tokens(token_N).float(), None
        for index, (layer, norms) in enumerate(zip(self.products, self.norms, strict=True)):
            qkv = layer.qkv(between.norm(x_ND, add_ND, norms[0]))
            add_ND = layer.o(attend(index, qkv))
            both = layer.gate_up(between.norm(x_ND, add_ND, norms[1]))
            add_ND = layer.down(between.gate(both))
        return x_ND + add_ND if add_ND is not None else x_ND
