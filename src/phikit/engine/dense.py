"""Runs the dense decoders: prompts by pieces, then one token per row and step.

Shapes: N rows, B pieces, L positions of a piece, D model width, H query heads, G key-value heads,
K head size, R rotated part of a head, J blocks of a table, S positions of a block.

This is the arithmetic of `models.decoder` over a paged cache. Matrices are called as modules, so
that quantised or adapted ones can stand in their place; plain ones may be packed for many steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.engine.adapted import Adapters
from phikit.engine.attention import Plan, RowAttention, plan
from phikit.engine.packed import Product, packed
from phikit.engine.pool import Pool, block_bytes
from phikit.engine.runner import Piece, Rows, RowStates
from phikit.models import lora
from phikit.models.decoder import Attend, Decoder, Layer, rope_tables
from phikit.models.decoder_config import DecoderConfig

_TOGETHER = 8192  # padded positions computed at once
_TABLE = 256  # rotation tables grow by this many positions


class RopeTable:
    """Rotations of all positions up to a length, for LongRoPE's short and long factors.

    They are computed `_TABLE` positions at a time: a position's do not depend on the length.
    """

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config, self.dtype, self.device = config, dtype, device
        self.length = 0
        self.cos_LR = self.sin_LR = torch.empty(0)

    def fit(self, length: int) -> None:
        """Makes the tables long enough for so many positions."""
        if length <= self.length:
            return
        config = self.config
        self.length = -(-max(length, 2 * self.length) // _TABLE) * _TABLE
        original = config.long_rope.original_max_positions if config.long_rope else 0
        tables = [
            rope_tables(config, torch.arange(at, at + _TABLE, device=self.device)[None], regime)
            for regime in ([original, original + 1] if config.long_rope else [1])
            for at in range(0, self.length, _TABLE)
        ]
        self.cos_LR = torch.cat([cos[0] for cos, _ in tables]).to(self.dtype)
        sin_LR = torch.cat([sin[0] for _, sin in tables]).to(self.dtype)
        half = sin_LR.shape[1] // 2
        # the sign of rotate-half's first half is kept in the table
        self.sin_LR = torch.cat((-sin_LR[:, :half], sin_LR[:, half:]), dim=1)

    def at(self, position_N: Tensor, long_N: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines [N, 1, R] of each row's position under its own factors."""
        index_N = position_N + long_N * self.length
        return self.cos_LR[index_N, None], self.sin_LR[index_N, None]


def rotate_rows(x_NHK: Tensor, cos_N1R: Tensor, sin_N1R: Tensor) -> Tensor:
    """`models.decoder.rotate` for one position per row, with signed sines."""
    r = cos_N1R.shape[-1]
    turned = x_NHK[..., :r]
    half = torch.cat((turned[..., r // 2 :], turned[..., : r // 2]), dim=-1)
    turned = turned * cos_N1R + half * sin_N1R
    return torch.cat((turned, x_NHK[..., r:]), dim=-1) if r < x_NHK.shape[-1] else turned


class Products(NamedTuple):
    """The matrix products of one layer."""

    qkv: Product
    o: Product
    gate_up: Product
    down: Product


class DenseRunner:
    """A `runner.Runner` of a `Decoder`.

    Args:
        pack: lay the weights out for steps of about so many rows (see `packed`). They are copied:
            later changes of the model's are not seen. 0 computes on the model's own.
    """

    states: RowStates | None = None

    def __init__(self, model: Decoder, block_size: int = 32, pack: int = 0) -> None:
        config = model.config
        self.model, self.config, self.block_size = model, config, block_size
        self.vocab_size, self.max_positions = config.vocab_size, config.max_positions
        self.original = config.long_rope.original_max_positions if config.long_rope else None
        embedding = model.model.embed_tokens.weight
        self.device, self.dtype = embedding.device, embedding.dtype
        self.block_bytes = block_bytes(config, self.dtype, block_size)
        window = config.sliding_window
        self.window = window if window and window < config.max_positions else None
        self.rope = RopeTable(config, self.dtype, self.device)
        self.prefilled = 0
        self.pool: Any  # a `pool.Pool`, or what stands in its place
        self._plan: Plan | None = None

        self.lora = Adapters(model)
        self.adapters = self.lora.names
        product = partial(self._product, pack=pack)
        layers = [cast(Layer, module) for module in model.model.layers]
        self.products = [
            Products(
                product(layer.self_attn.qkv_proj), product(layer.self_attn.o_proj),
                product(layer.mlp.gate_up_proj), product(layer.mlp.down_proj),
            )
            for layer in layers
        ]  # fmt: skip
        self.norms = [(x.input_layernorm.weight, x.post_attention_layernorm.weight) for x in layers]
        self.head_product = product(model.lm_head)

    def _product(self, module: nn.Module, pack: int = 0) -> Product:
        """How a matrix of the model is multiplied by."""
        if isinstance(module, lora.LoraLinear):
            return self.lora.product(module, self._product(module.base_layer, pack))
        return packed(module, pack) if pack else module

    def allocate(self, blocks: int) -> None:
        self.pool = Pool(self.config, blocks, self.block_size, self.dtype, self.device)

    def copy_blocks(self, source: Sequence[int], target: Sequence[int]) -> None:
        self.pool.copy(source, target)

    # --- one token per row -----------------------------------------------------------------------

    def step(self, rows: Rows) -> Tensor:
        """Logits [N, V] after feeding one token per row."""
        self.lora.choose(rows.adapters, len(rows.token_N), self.device)
        return self.head(self.rows_hidden(rows))

    def head(self, x_ND: Tensor) -> Tensor:
        """Logits [N, V] of what the last layer leaves."""
        return self.head_product(self._norm(x_ND, self.model.model.norm.weight))

    def _norm(self, x_ND: Tensor, weight_D: Tensor) -> Tensor:
        """x / rms(x) × weight, of float32 in the weight's precision."""
        wide_D = weight_D.float()
        return F.rms_norm(x_ND, wide_D.shape, wide_D, self.config.norm_eps).to(weight_D.dtype)

    def rows_hidden(self, rows: Rows) -> Tensor:
        """What the last layer leaves of each row: [N, D], float32."""
        config, size = self.config, self.block_size
        column_N = rows.position_N // size
        if not rows.same or self._plan is None:
            j = int(column_N.max()) + 1
            e = config.heads // config.kv_heads
            self._plan = plan(
                rows.table_NJ[:, :j], column_N + 1, config.kv_heads, e, self.device
            )  # fmt: skip
        self.rope.fit(int(rows.position_N.max()) + 1)
        block_N = rows.table_NJ[np.arange(len(column_N)), column_N]
        columns = np.stack((rows.token_N, rows.position_N, block_N, rows.long_N))
        token_N, position_N, block_N_, long_N = torch.from_numpy(columns).to(self.device)
        places = self.pool.places(block_N_, position_N % size)
        attend = RowAttention(self.pool, self._plan, position_N, places, self.window)
        return self._layers(token_N, self.rope.at(position_N, long_N), attend)

    def _layers(self, token_N: Tensor, rope: tuple[Tensor, Tensor], attend: RowAttention) -> Tensor:
        config = self.config
        heads, turned = config.heads, config.heads + config.kv_heads
        every = config.heads + 2 * config.kv_heads
        x_ND = self.model.model.embed_tokens(token_N).float()
        for index, (layer, norms) in enumerate(zip(self.products, self.norms, strict=True)):
            h_ND = self._norm(x_ND, norms[0])
            qkv = layer.qkv(h_ND).view(-1, every, config.head_dim)
            qk = rotate_rows(qkv[:, :turned], *rope)
            out = attend(index, qk[:, :heads], qk[:, heads:], qkv[:, turned:])
            x_ND = x_ND + layer.o(out)
            h_ND = self._norm(x_ND, norms[1])
            gate, up = layer.gate_up(h_ND).chunk(2, dim=-1)
            x_ND = x_ND + layer.down(F.silu(gate) * up)
        return x_ND

    # --- prompts ---------------------------------------------------------------------------------

    def prefill(self, pieces: Sequence[Piece], late: bool = False) -> None:
        """Pieces of like length go together; those of one RoPE regime, and with or without a
        filled part before them. Nothing is left for later."""
        kinds: dict[tuple[bool, bool], list[Piece]] = {}
        for piece in sorted(pieces, key=lambda p: -len(p.tokens)):
            kinds.setdefault((piece.long, piece.start > 0), []).append(piece)
        for (_, follows), same in kinds.items():
            while same:
                room = max(1, _TOGETHER // len(same[0].tokens))
                with self._routed(same[:room]):
                    self._prefill_group(same[:room], follows)
                same = same[room:]

    def settle(self) -> None:
        return

    def _routed(self, group: list[Piece]) -> AbstractContextManager[None]:
        names = self.lora.full([p.adapter for p in group], len(group))
        return lora.route([n or None for n in names], partial=True) if any(names) else nullcontext()

    def _prefill_group(self, group: list[Piece], follows: bool) -> None:
        size, longest = self.block_size, len(group[0].tokens)
        ids_BL = np.zeros((len(group), longest), dtype=np.int64)
        position_BL = np.array([[p.start] for p in group]) + np.arange(longest)
        block_BL = np.zeros_like(ids_BL)
        length_B = np.array([len(p.tokens) for p in group])
        for row, piece in enumerate(group):
            n = length_B[row]
            ids_BL[row, :n] = piece.tokens
            block_BL[row, :n] = np.asarray(piece.table)[position_BL[row, :n] // size]
        real = torch.from_numpy(np.flatnonzero(np.arange(longest) < length_B[:, None]))
        real = real.to(self.device)
        where = torch.from_numpy(np.stack((block_BL, position_BL % size))).to(self.device)
        places = self.pool.places(*where.flatten(1)[:, real])
        causal = self.model.attend
        if follows:
            tables = [p.table[: (p.start + len(p.tokens) - 1) // size + 1] for p in group]
            causal = self._following(tables, torch.from_numpy(position_BL).to(self.device))

        def store(layer: int, k_BGLK: Tensor, v_BGLK: Tensor) -> None:
            k, v = (t.transpose(1, 2).flatten(0, 1)[real] for t in (k_BGLK, v_BGLK))
            self.pool.write(layer, places, k, v)

        long = group[0].long
        regime = None
        if self.original is not None:
            regime = self.original + 1 if long else self.original
        tokens = torch.from_numpy(ids_BL).to(self.device)
        self._through(tokens, torch.from_numpy(position_BL).to(self.device), store, causal, regime)
        self.prefilled += int(length_B.sum())

    def _through(
        self,
        ids_BL: Tensor,
        position_BL: Tensor,
        store: Callable[[int, Tensor, Tensor], None],
        causal: Attend,
        regime: int | None,
    ) -> None:
        """Takes a prompt's tokens through the layers; keys and values of each go to `store`."""

        def attend(layer: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
            store(layer, k_BGLK, v_BGLK)
            return causal(layer, q_BHLK, k_BGLK, v_BGLK)

        self.model.hidden(ids_BL, position_BL, attend=attend, rope_length=regime)

    def _following(self, tables: Sequence[Sequence[int]], position_BL: Tensor):  # type: ignore[no-untyped-def]
        """Attention of new positions to their tables, which hold them already."""
        j = max(map(len, tables))
        table_BJ = np.zeros((len(tables), j), np.int64)
        for row, table in enumerate(tables):
            table_BJ[row, : len(table)] = table
        blocks = torch.from_numpy(table_BJ).to(self.device)
        at_T = torch.arange(j * self.block_size, device=self.device)
        seen_BLT = at_T <= position_BL[..., None]
        if self.window is not None:
            seen_BLT &= at_T > position_BL[..., None] - self.window
        mask_B1LT = seen_BLT[:, None]

        def attend(layer: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
            k_BGTK, v_BGTK = self.pool.read(layer, blocks)
            return F.scaled_dot_product_attention(
                q_BHLK, k_BGTK, v_BGTK, attn_mask=mask_B1LT,
                enable_gqa=q_BHLK.shape[1] != k_BGTK.shape[1],
            )  # fmt: skip

        return attend
