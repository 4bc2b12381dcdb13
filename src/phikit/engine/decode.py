"""One decoding step: the next hidden state of every row, from the model's own parameters.

Shapes: N rows, D model width, H query heads, G key-value heads, E = H / G query heads per
key-value head, K head size, R rotated part of a head, F prompt slots, C seats per prompt,
P prompt positions, O generated positions.

This is the arithmetic of `models.decoder` for one new position per row, written for few and large
operations. Rows of one prompt sit in its seats, so that attention to the prompt is one matrix
product for all of them; attention to what a row generated itself is one small product per row.
Both parts share one softmax.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from phikit.engine.cache import KVCache
from phikit.models.decoder import Decoder, Layer, rope_tables
from phikit.models.decoder_config import DecoderConfig


class RopeTable:
    """Rotations of all positions up to a length, for LongRoPE's short and long factors."""

    def __init__(
        self, config: DecoderConfig, length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.length = length
        position_1L = torch.arange(length, device=device)[None]
        original = config.long_rope.original_max_positions if config.long_rope else 0
        regimes = [original, original + 1] if config.long_rope else [length]
        tables = [rope_tables(config, position_1L, regime) for regime in regimes]
        self.cos_LR = torch.cat([cos[0] for cos, _ in tables]).to(dtype)
        sin_LR = torch.cat([sin[0] for _, sin in tables]).to(dtype)
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


class StepAttention:
    """What the new position of each row attends to, for one step and all layers.

    Args:
        seat_N: the row's place among prompt slots × seats.
        prefix_N: how many positions its prompt slot holds.
        own_N: how many positions the row holds itself, before the new one.
        prompts, seats: prompt slots in use, and seats of each.
    """

    def __init__(
        self,
        config: DecoderConfig,
        cache: KVCache,
        seat_N: Tensor,
        prefix_N: Tensor,
        own_N: Tensor,
        prompts: int,
        seats: int,
    ) -> None:
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        self.cache, self.prompts, self.seats = cache, prompts, seats
        self.p, self.o = cache.prompts.shape[4], cache.rows.shape[4]
        n, g, device = len(seat_N), config.kv_heads, seat_N.device
        head_G = torch.arange(g, device=device)
        prompt_N, chair_N = seat_N // seats, seat_N % seats
        self.place_NG = ((prompt_N[:, None] * g + head_G) * seats + chair_N[:, None]).flatten()
        slots, capacity = cache.rows.shape[2], self.o
        row_N = torch.arange(n, device=device)
        write_NG = (row_N[:, None] * g + head_G) * capacity + own_N[:, None]
        self.write_2NG = torch.cat((write_NG, write_NG + slots * g * capacity)).flatten()
        self.bias_N11L = self._bias(config, prefix_N, own_N)

    def _bias(self, config: DecoderConfig, prefix_N: Tensor, own_N: Tensor) -> Tensor:
        """0 where a row may look, -inf elsewhere: [N, 1, 1, P + O] in float32."""
        prompt_P = torch.arange(self.p, device=own_N.device)
        own_O = torch.arange(self.o, device=own_N.device)
        hidden = torch.cat((prompt_P >= prefix_N[:, None], own_O > own_N[:, None]), dim=1)
        if config.sliding_window and config.sliding_window < config.max_positions:
            at_NL = torch.cat((prompt_P.expand(len(own_N), -1), own_O + prefix_N[:, None]), dim=1)
            hidden |= at_NL <= (prefix_N + own_N)[:, None] - config.sliding_window
        bias = torch.zeros(hidden.shape, device=own_N.device).masked_fill_(hidden, -math.inf)
        return bias[:, None, None]

    def __call__(self, layer: int, q_NHK: Tensor, kv_N2GK: Tensor) -> Tensor:
        """Stores the new keys and values, and attends: [N, H × K]."""
        n, h, k = q_NHK.shape
        g, e, c, f = self.kv_heads, h // self.kv_heads, self.seats, self.prompts
        rows_2NGOK = self.cache.rows[layer]
        new = kv_N2GK.view(n, 2, g, k).transpose(0, 1).reshape(-1, k)
        rows_2NGOK.view(-1, k).index_copy_(0, self.write_2NG, new)
        own_k, own_v = (t.flatten(0, 1)[: n * g] for t in rows_2NGOK)
        prompt_k, prompt_v = (t.flatten(0, 1)[: f * g, : self.p] for t in self.cache.prompts[layer])
        q = q_NHK.reshape(n * g, e * k)
        seated = q.new_zeros(f * g * c, e * k).index_copy_(0, self.place_NG, q)
        to_prompt = torch.bmm(seated.view(f * g, c * e, k), prompt_k.transpose(1, 2))
        to_prompt = to_prompt.view(f * g * c, e, self.p).index_select(0, self.place_NG)
        to_own = torch.bmm(q.view(n * g, e, k), own_k.transpose(1, 2))
        score = torch.cat((to_prompt, to_own), dim=-1).view(n, g, e, -1)
        score = torch.add(self.bias_N11L, score, alpha=k**-0.5)
        weight = torch.softmax(score, -1).to(q.dtype).view(n * g, e, -1)
        w_prompt, w_own = weight[..., : self.p], weight[..., self.p :]
        seated = q.new_zeros(f * g * c, e, self.p).index_copy_(0, self.place_NG, w_prompt)
        out = torch.bmm(seated.view(f * g, c * e, self.p), prompt_v)
        out = out.view(f * g * c, e, k).index_select(0, self.place_NG)
        return torch.baddbmm(out, w_own, own_v).view(n, h * k)


def decode(
    model: Decoder, ids_N: Tensor, rope: tuple[Tensor, Tensor], attend: StepAttention
) -> Tensor:
    """Logits [N, V] after feeding one token per row."""
    config = model.config
    width = (config.hidden_size,)
    turned, every = config.heads + config.kv_heads, config.heads + 2 * config.kv_heads
    x_ND = F.embedding(ids_N, model.model.embed_tokens.weight)
    for index, module in enumerate(model.model.layers):
        layer = cast(Layer, module)
        attention, mlp = layer.self_attn, layer.mlp
        h_ND = F.rms_norm(x_ND, width, layer.input_layernorm.weight, config.norm_eps)
        qkv = F.linear(h_ND, attention.qkv_proj.weight).view(-1, every, config.head_dim)
        qk = rotate_rows(qkv[:, :turned], *rope)
        kv = torch.cat((qk[:, config.heads :], qkv[:, turned:]), dim=1)
        out = attend(index, qk[:, : config.heads], kv)
        x_ND = x_ND + F.linear(out, attention.o_proj.weight)
        h_ND = F.rms_norm(x_ND, width, layer.post_attention_layernorm.weight, config.norm_eps)
        gate, up = F.linear(h_ND, mlp.gate_up_proj.weight).chunk(2, dim=-1)
        x_ND = x_ND + F.linear(F.silu(gate) * up, mlp.down_proj.weight)
    x_ND = F.rms_norm(x_ND, width, model.model.norm.weight, config.norm_eps)
    return F.linear(x_ND, model.lm_head.weight)
