"""The dense Phi decoder: phi-4, phi-4-reasoning, phi-4-mini and Llama-shaped models.

Shapes: B batch, L sequence, D model width, H query heads, G key-value heads, K head size,
F inner width of the MLP, R rotated part of a head, V vocabulary.

Module and parameter names are those of the published checkpoints (`Phi3ForCausalLM`), so weights
load without a renaming table. The model knows nothing of caches, packing or devices: *what each
position attends to* is the `attend` function it is called with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.models.attention import causal
from phikit.models.decoder_config import DecoderConfig

#: (layer index, q_BHLK, k_BGLK, v_BGLK) → out_BHLK
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class RMSNorm(nn.Module):
    """x / rms(x) × weight, computed in float32, in the weight's precision.

    Without gradients torch's own is taken, which is several times faster on a CPU; with them its
    backward pass makes it the slower one.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD, weight_D = x_BLD.float(), self.weight.float()
        if not torch.is_grad_enabled():
            return F.rms_norm(x_BLD, weight_D.shape, weight_D, self.eps).to(self.weight.dtype)
        scale_BL1 = torch.rsqrt(x_BLD.pow(2).mean(-1, keepdim=True) + self.eps)
        return (x_BLD * scale_BL1 * weight_D).to(self.weight.dtype)


def rope_tables(
    config: DecoderConfig, positions_BL: Tensor, length: int | Sequence[int] | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotation, float32, each [B, L, R] (halves repeated: NeoX style).

    Args:
        positions_BL: integer positions.
        length: the sequence length that decides between LongRoPE's short and long factors, for
            all rows or for each; the largest position plus one when it is left out.

    With LongRoPE both tables are scaled by sqrt(1 + ln(max / original) / ln(original)).
    """
    if isinstance(length, Sequence):
        rows = zip(positions_BL.expand(len(length), -1).split(1), length, strict=True)
        cos, sin = zip(*(rope_tables(config, row_1L, own) for row_1L, own in rows), strict=True)
        return torch.cat(cos), torch.cat(sin)
    r = config.rotary_dim
    device = positions_BL.device
    inverse_R2 = config.rope_theta ** (
        -torch.arange(0, r, 2, dtype=torch.int64, device=device).float() / r
    )
    scale = 1.0
    if (long := config.long_rope) is not None:
        if length is None:
            length = int(positions_BL.max()) + 1
        factor = long.long_factor if length > long.original_max_positions else long.short_factor
        inverse_R2 = inverse_R2 / torch.tensor(factor, dtype=torch.float32, device=device)
        ratio = config.max_positions / long.original_max_positions
        if ratio > 1:
            scale = math.sqrt(1 + math.log(ratio) / math.log(long.original_max_positions))
    angle_BLR2 = positions_BL[..., None].float() * inverse_R2
    angle_BLR = torch.cat((angle_BLR2, angle_BLR2), dim=-1)
    return angle_BLR.cos() * scale, angle_BLR.sin() * scale


def rotate(x_BHLK: Tensor, cos_BLR: Tensor, sin_BLR: Tensor) -> Tensor:
    """Rotates the first R dimensions of every head; the rest passes through."""
    cos, sin = cos_BLR[:, None].to(x_BHLK.dtype), sin_BLR[:, None].to(x_BHLK.dtype)
    r, k = cos.shape[-1], x_BHLK.shape[-1]
    if r < k:
        turned, rest = x_BHLK.split((r, k - r), dim=-1)
        return torch.cat((rotate(turned, cos_BLR, sin_BLR), rest), dim=-1)
    first, second = x_BHLK.chunk(2, dim=-1)
    return x_BHLK * cos + torch.cat((-second, first), dim=-1) * sin


def causal_attend(_: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
    """Every position attends to itself and all earlier ones of its row: no cache, no packing."""
    return causal(q_BHLK, k_BGLK, v_BGLK)


def windowed_attend(window: int) -> Attend:
    """Causal attention to the latest `window` positions, itself included."""

    def attend(_: int, q_BHLK: Tensor, k_BGLK: Tensor, v_BGLK: Tensor) -> Tensor:
        index = torch.arange(q_BHLK.shape[2], device=q_BHLK.device)
        distance = index[:, None] - index
        mask_LL = (distance >= 0) & (distance < window)
        return F.scaled_dot_product_attention(
            q_BHLK, k_BGLK, v_BGLK, attn_mask=mask_LL,
            enable_gqa=q_BHLK.shape[1] != k_BGLK.shape[1],
        )  # fmt: skip

    return attend


class Attention(nn.Module):
    """Grouped-query attention with one fused projection for queries, keys and values."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.heads, config.kv_heads, config.head_dim
        rows = (config.heads + 2 * config.kv_heads) * config.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, rows, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_dim, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        h, g, k = self.heads, self.kv_heads, self.head_dim
        b, n, _ = x_BLD.shape
        qkv = self.qkv_proj(x_BLD).view(b, n, h + 2 * g, k).transpose(1, 2)
        q_BHLK, k_BGLK, v_BGLK = qkv.split((h, g, g), dim=1)
        out_BHLK = attend(self.layer, rotate(q_BHLK, *rope), rotate(k_BGLK, *rope), v_BGLK)
        return self.o_proj(out_BHLK.transpose(1, 2).reshape(b, n, h * k))


class MLP(nn.Module):
    """SwiGLU with the gate and up projections fused: down(silu(gate) × up)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Linear(d, 2 * f, bias=False)
        self.down_proj = nn.Linear(f, d, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        gate_BLF, up_BLF = self.gate_up_proj(x_BLD).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate_BLF) * up_BLF)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x_BLD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x_BLD = x_BLD + self.self_attn(self.input_layernorm(x_BLD), rope, attend)
        return x_BLD + self.mlp(self.post_attention_layernorm(x_BLD))


class Backbone(nn.Module):
    """Everything below the head: embeddings, layers and the final norm."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Decoder(nn.Module):
    """A dense Phi.

    `hidden` gives the final hidden states, which training turns into losses in chunks so that the
    logits are never whole; calling the model gives the logits.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.attend: Attend = (
            windowed_attend(config.sliding_window)
            if config.sliding_window and config.sliding_window < config.max_positions
            else causal_attend
        )

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, init_std) for matrices, ones for norms, drawn in parameter order."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, self.config.init_std, generator=generator)
            else:
                parameter.fill_(1.0)

    def hidden(
        self,
        ids_BL: Tensor,
        positions_BL: Tensor | None = None,
        attend: Attend | None = None,
        rope_length: int | Sequence[int] | None = None,
        inputs_embeds_BLD: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B, L, D], after the last norm.

        Args:
            ids_BL: token ids.
            positions_BL: their positions; 0, 1, 2, ... when left out.
            attend: what each position attends to; causal within the row when left out.
            rope_length: see `rope_tables`.
            inputs_embeds_BLD: what goes into the first layer, where it is not the embeddings of
                the ids alone: a prompt with pictures. Of the ids only the shape counts then.
        """
        if positions_BL is None:
            positions_BL = torch.arange(ids_BL.shape[1], device=ids_BL.device)[None]
        rope = rope_tables(self.config, positions_BL, rope_length)
        attend = attend or self.attend
        x_BLD = inputs_embeds_BLD
        if x_BLD is None:
            x_BLD = self.model.embed_tokens(ids_BL)
        x_BLD = x_BLD.float()  # what the layers add is small beside the sum: bfloat16 would lose it
        for layer in self.model.layers:
            x_BLD = layer(x_BLD, rope, attend)
        return self.model.norm(x_BLD)

    def forward(
        self,
        ids_BL: Tensor,
        positions_BL: Tensor | None = None,
        attend: Attend | None = None,
        rope_length: int | Sequence[int] | None = None,
    ) -> Tensor:
        """Logits [B, L, V]; arguments as for `hidden`."""
        return self.lm_head(self.hidden(ids_BL, positions_BL, attend, rope_length))
