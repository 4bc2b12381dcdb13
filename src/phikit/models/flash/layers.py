"""What a SambaY decoder is built of. Names of modules and parameters are those of its checkpoint.

Shapes: B rows, L positions, D model width, I Mamba's channels, S states of a channel, W taps of the
convolution, F inner width of the MLP, E key-value heads, P pairs of them, R query heads of one,
K head size, V = 2 K.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phikit.models.flash.attention import split_keys, split_queries, split_values
from phikit.models.flash.config import FlashConfig, Kind
from phikit.models.flash.kernels import fused_convolution, fused_scan
from phikit.models.flash.scan import scan_step, selective_scan

_SUBNORM_EPS = 1e-5  # of the norm inside differential attention, whatever the other norms use


class KeepsWide(nn.Module):
    """A module whose own parameters stay in float32 when the model goes down to 16 bits.

    Exponentials are taken of these few numbers, which 16 bits would spoil by about half a per cent.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        if recurse:
            for child in self.children():
                child._apply(fn)

        def wide(t: Tensor) -> Tensor:
            new = fn(t)
            if new.is_floating_point() and new.element_size() < 4:
                return t.to(new.device, torch.float32)
            return new

        return super()._apply(wide, recurse=False)


class MLP(nn.Module):
    """SwiGLU with both halves in one matrix: fc2(silu(gate) × up)."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        d, f = config.hidden_size, config.intermediate_size
        self.fc1 = nn.Linear(d, 2 * f, bias=False)
        self.fc2 = nn.Linear(f, d, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        gate_BLF, up_BLF = self.fc1(x_BLD).chunk(2, dim=-1)
        return self.fc2(F.silu(gate_BLF) * up_BLF)


class Mamba(KeepsWide):
    """Mamba-1 (Gu and Dao 2023). Beside its output it gives what it reads from its states, ungated.

    The time steps' bias is added in float32, after the product, as the published kernels do; so
    `dt_proj`, a small matrix, is used as weights and not called.
    """

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        d, i, s, w = (
            config.hidden_size, config.inner_size, config.state_size, config.conv_width,
        )  # fmt: skip
        self.sizes = (config.dt_rank, s, s)
        self.in_proj = nn.Linear(d, 2 * i, bias=False)
        self.conv1d = nn.Conv1d(i, i, w, groups=i, padding=w - 1)
        self.x_proj = nn.Linear(i, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, i)
        self.A_log = nn.Parameter(torch.empty(i, s))
        self.D = nn.Parameter(torch.empty(i))
        self.out_proj = nn.Linear(i, d, bias=False)

    def rates(self) -> Tensor:
        """A [S, I], negative."""
        return -torch.exp(self.A_log).t().contiguous()

    def _inputs(self, x_BLI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low, b_BLS, c_BLS = self.x_proj(x_BLI).split(self.sizes, dim=-1)
        return F.linear(low, self.dt_proj.weight), b_BLS, c_BLS

    def forward(self, x_BLD: Tensor, age_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output [B, L, D] and memory [B, L, I], from nothing before the first position.

        Args:
            age_BL: positions since the document's beginning, where a row holds several.
        """
        x_BLI, z_BLI = self.in_proj(x_BLD).chunk(2, dim=-1)
        fused = x_BLI.is_cuda and age_BL is None
        conv_BLI = fused_convolution(x_BLI, *self._taps()) if fused else None
        if conv_BLI is None:
            conv_BLI = self._convolve(F.pad(x_BLI, (0, 0, self.taps - 1, 0)), age_BL)
        delta, b, c = self._inputs(conv_BLI)
        args = (conv_BLI, delta, self.rates(), b, c, self.D, self.dt_proj.bias)
        found = fused_scan(*args) if fused else None
        fresh_BL = None if age_BL is None else age_BL == 0
        y_BLI, _ = selective_scan(*args, fresh_BL=fresh_BL) if found is None else found
        return self.out_proj(y_BLI * F.silu(z_BLI)), y_BLI

    def continued(
        self, x_BLD: Tensor, tail_BCI: Tensor, state_BSI: Tensor, valid_BL: Tensor | None,
        count_B: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """As forward, after an earlier part; also gives the new tail and state.

        Args:
            tail_BCI: the latest W - 1 inputs of the convolution.
            valid_BL: False for padding at the end of a row; count_B: valid positions of each row.
        """
        x_BLI, z_BLI = self.in_proj(x_BLD).chunk(2, dim=-1)
        extended = torch.cat((tail_BCI, x_BLI), dim=1)
        conv_BLI = self._convolve(extended, None)
        delta, b, c = self._inputs(conv_BLI)
        y_BLI, state_BSI = selective_scan(
            conv_BLI, delta, self.rates(), b, c, self.D, self.dt_proj.bias, state_BSI,
            valid_BL=valid_BL,
        )  # fmt: skip
        at_BC = count_B[:, None] + torch.arange(self.taps - 1, device=x_BLD.device)
        tail_BCI = extended.gather(1, at_BC[..., None].expand(*at_BC.shape, extended.shape[2]))
        return self.out_proj(y_BLI * F.silu(z_BLI)), y_BLI, tail_BCI, state_BSI

    def step(self, x_B1D: Tensor, tail_BCI: Tensor, state_BSI: Tensor) -> tuple[Tensor, Tensor]:
        """One position; tail and state are brought forward in place."""
        x_B1I, z_B1I = self.in_proj(x_B1D).chunk(2, dim=-1)
        extended = torch.cat((tail_BCI, x_B1I), dim=1)
        tail_BCI.copy_(extended[:, 1:])
        conv_B1I = self._convolve(extended, None)
        delta, b, c = (t.squeeze(1) for t in self._inputs(conv_B1I))
        y_BI = scan_step(
            conv_B1I.squeeze(1), delta, self.rates(), b, c, self.D, self.dt_proj.bias, state_BSI
        )
        y_B1I = y_BI[:, None]
        return self.out_proj(y_B1I * F.silu(z_B1I)), y_B1I

    @property
    def taps(self) -> int:
        return self.conv1d.weight.shape[2]

    def _taps(self) -> tuple[Tensor, Tensor]:
        bias_I = self.conv1d.bias
        assert bias_I is not None
        return self.conv1d.weight.squeeze(1), bias_I

    def _convolve(self, extended: Tensor, age_BL: Tensor | None) -> Tensor:
        """Causal depthwise convolution and SiLU of [B, W - 1 + L, I], added up in float32."""
        taps_IW, bias_I = self._taps()
        length = extended.shape[1] - self.taps + 1
        wide = torch.promote_types(extended.dtype, torch.float32)
        out = bias_I.to(wide)
        for tap in range(self.taps):
            part = extended[:, tap : tap + length] * taps_IW[:, tap].to(wide)
            distance = self.taps - 1 - tap
            if age_BL is not None and distance:
                part = part * (age_BL >= distance)[..., None]
            out = out + part
        return F.silu(out).to(extended.dtype)


class GMU(nn.Module):
    """Gated memory unit: another layer's memory, gated by this position (arXiv 2507.06607)."""

    def __init__(self, config: FlashConfig) -> None:
        super().__init__()
        self.in_proj = nn.Linear(config.hidden_size, config.inner_size, bias=False)
        self.out_proj = nn.Linear(config.inner_size, config.hidden_size, bias=False)

    def forward(self, x_BLD: Tensor, memory_BLI: Tensor) -> Tensor:
        return self.out_proj(memory_BLI * F.silu(self.in_proj(x_BLD)))


class Difference(KeepsWide):
    """Takes the second map from the first, λ times, and normalises each pair of heads."""

    def __init__(self, config: FlashConfig, layer: int) -> None:
        super().__init__()
        k = config.head_dim
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (
            nn.Parameter(torch.empty(k)) for _ in range(4)
        )
        self.subln = nn.RMSNorm(2 * k, eps=_SUBNORM_EPS)

    def forward(self, maps_BP2RLV: Tensor) -> Tensor:
        """[B, P, 2, R, L, V] → [B, L, D], computed in float32."""
        wide = torch.promote_types(maps_BP2RLV.dtype, torch.float32)
        first = torch.exp((self.lambda_q1 * self.lambda_k1).sum())
        second = torch.exp((self.lambda_q2 * self.lambda_k2).sum())
        weight = (first - second + self.initial).to(wide)
        one, two = maps_BP2RLV.to(wide).unbind(2)
        left = one - weight * two
        left = left * torch.rsqrt(left.pow(2).mean(-1, keepdim=True) + _SUBNORM_EPS)
        left = left * (self.subln.weight.to(wide) * (1 - self.initial))
        return left.to(maps_BP2RLV.dtype).permute(0, 3, 1, 2, 4).flatten(2)


class Attention(nn.Module):
    """The projections around differential attention; cross-attention has no keys of its own."""

    def __init__(self, config: FlashConfig, layer: int) -> None:
        super().__init__()
        d, e, k = config.hidden_size, config.kv_heads, config.head_dim
        self.kv_heads, self.head_dim = e, k
        self.cross = config.kind(layer) is Kind.CROSS
        self.Wqkv = nn.Linear(d, d if self.cross else d + 2 * e * k)
        self.out_proj = nn.Linear(d, d)
        self.inner_cross_attn = Difference(config, layer)

    def project(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, L, D], keys [B, E, L, K] and values [B, P, L, V]."""
        e, k = self.kv_heads, self.head_dim
        rest = self.Wqkv(x_BLD)
        q_BLD, k_BLD, v_BLD = rest.split((rest.shape[-1] - 2 * e * k, e * k, e * k), dim=-1)
        return q_BLD, split_keys(k_BLD, e), split_values(v_BLD, e)

    def queries(self, x_BLD: Tensor) -> Tensor:
        """Of a cross-attention layer: [B, E, R, L, K]."""
        return self.split(self.Wqkv(x_BLD))

    def split(self, q_BLD: Tensor) -> Tensor:
        """Queries by pair of heads: [B, L, D] → [B, E, R, L, K]."""
        return split_queries(q_BLD, self.kv_heads, self.head_dim)

    def finish(self, maps_BP2RLV: Tensor) -> Tensor:
        """From the attention's two maps to the layer's output [B, L, D]."""
        return self.out_proj(self.inner_cross_attn(maps_BP2RLV))


class Layer(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)); x is kept in float32 from the first Mamba on."""

    def __init__(self, config: FlashConfig, layer: int) -> None:
        super().__init__()
        self.kind = config.kind(layer)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn: Mamba | GMU | Attention
        if self.kind is Kind.MAMBA:
            self.attn = Mamba(config)
        elif self.kind is Kind.GMU:
            self.attn = GMU(config)
        else:
            self.attn = Attention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(config)

    def normed(self, x_BLD: Tensor) -> Tensor:
        """What the mixer gets."""
        return normed(self.input_layernorm, x_BLD)

    def rest(self, x_BLD: Tensor, mixed_BLD: Tensor) -> Tensor:
        """The layer's output, from its input and what the mixer gave."""
        if self.kind in (Kind.MAMBA, Kind.GMU):
            x_BLD = x_BLD.to(torch.promote_types(x_BLD.dtype, torch.float32))
        x_BLD = x_BLD + mixed_BLD
        return x_BLD + self.mlp(normed(self.post_attention_layernorm, x_BLD))


def normed(norm: nn.LayerNorm, x_BLD: Tensor) -> Tensor:
    """The norm in the precision of its weights, to which the wide x is brought first."""
    out: Tensor = norm(x_BLD.to(norm.weight.dtype))
    return out
