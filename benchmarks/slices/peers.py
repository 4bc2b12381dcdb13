"""The other side: transformers' Phi3, and for flash a model made of transformers' own parts.

transformers has no phi-4-mini-flash, and the code published with it runs on CUDA alone (it imports
flash-attn, mamba-ssm and causal-conv1d at its top). What can be had is a SambaY whose pieces are
transformers': Mamba's convolution and selective scan in plain torch (`models/mamba`), and
differential attention in two calls of torch's fused kernel, as `models/diffllama` computes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from shapes import FLASH_LAYERS, filled, shape
from torch import Tensor, nn
from transformers.models.mamba import modeling_mamba
from worker import documents, ids_of

from phikit.models.decoder_config import to_hf


class Peer:
    def __init__(self, name: str, weights: Path, tokens: int) -> None:
        transformers.utils.logging.set_verbosity_error()
        ours = filled(name, weights)
        self.model: Any = FlashPeer(name, ours) if name == "flash" else phi3(name, ours)
        self.model.train()
        self.flash = name == "flash"
        self.ids_1L = ids_of(tokens, shape(name).vocab_size)
        lengths = documents(tokens)
        self.positions_1L = torch.cat([torch.arange(n) for n in lengths])[None]
        self.documents = self.ids_1L[0].split(lengths)
        labels_1L = self.ids_1L.clone()
        labels_1L[self.positions_1L == 0] = -100
        self.packed_labels_1L = labels_1L
        self.compiled = torch.compile(self.model)

    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    def call(self, mode: str, work: str) -> Callable[[], Tensor]:
        way = {} if self.flash else {"use_cache": False}
        model = self.compiled if mode == "compiled" else self.model
        if work == "forward":
            return lambda: model(self.ids_1L, **way).logits
        if work == "train":
            return lambda: model(self.ids_1L, labels=self.ids_1L, **way).loss
        if work == "padded":
            return lambda: self.padded(model)
        # transformers sees by the positions where documents begin, and masks the others
        return lambda: (
            model(
                self.ids_1L, position_ids=self.positions_1L, labels=self.packed_labels_1L, **way
            ).loss
        )

    def padded(self, model: Any) -> Tensor:
        """A batch with a row for each document, filled up to the longest."""
        ids_BL = nn.utils.rnn.pad_sequence(list(self.documents), batch_first=True)
        rows = [torch.ones_like(ids) for ids in self.documents]
        mask_BL = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels_BL = ids_BL.masked_fill(mask_BL == 0, -100)
        return model(ids_BL, attention_mask=mask_BL, labels=labels_BL, use_cache=False).loss


def phi3(name: str, ours: Any) -> nn.Module:
    """transformers' decoder on the same parameters."""
    raw = transformers.Phi3Config(**to_hf(shape(name)))
    with torch.device("meta"):
        theirs = transformers.Phi3ForCausalLM(raw).bfloat16()
    theirs.load_state_dict(ours.state_dict(keep_vars=True), assign=True)
    theirs.model.rotary_emb = type(theirs.model.rotary_emb)(raw)  # its tables are not in the state
    theirs.tie_weights()
    return theirs


class _Out:
    def __init__(self, logits: Tensor, loss: Tensor | None) -> None:
        self.logits, self.loss = logits, loss


class FlashPeer(nn.Module):
    """SambaY on the same parameters."""

    def __init__(self, name: str, ours: Any) -> None:
        super().__init__()
        self.ours = ours
        self.config = shape(name)

    def forward(self, ids_BL: Tensor, labels: Tensor | None = None) -> _Out:
        c, model = self.config, self.ours.model
        x = model.embed_tokens(ids_BL)
        length = ids_BL.shape[1]
        index = torch.arange(length)
        distance = index[:, None] - index
        near = (distance >= 0) & (distance < c.sliding_window)
        memory = keys = values = x
        for number, layer in zip(FLASH_LAYERS, model.layers, strict=True):
            u = layer.input_layernorm(x)
            kind = layer.kind.name
            if kind == "MAMBA":
                mixed, memory = mamba(layer.attn, u)
            elif kind == "GMU":
                mixed = layer.attn.out_proj(memory * F.silu(layer.attn.in_proj(u)))
            else:
                rows = layer.attn.Wqkv(u)
                q = heads(rows[..., : c.hidden_size], c.head_dim)
                if kind != "CROSS":
                    kv = rows[..., c.hidden_size :].chunk(2, -1)
                    keys, values = (heads(part, c.head_dim) for part in kv)
                mask = near if kind == "WINDOW" and c.sliding_window < length else None
                mixed = layer.attn.out_proj(differential(layer.attn, q, keys, values, mask, number))
            x = x + mixed
            gate, up = layer.mlp.fc1(layer.post_attention_layernorm(x)).chunk(2, -1)
            x = x + layer.mlp.fc2(F.silu(gate) * up)
        logits = self.ours.lm_head(model.final_layernorm(x))
        loss = None
        if labels is not None:
            loss = transformers.loss.loss_utils.ForCausalLMLoss(logits, labels, c.vocab_size)
        return _Out(logits, loss)


def heads(x_BLD: Tensor, size: int) -> Tensor:
    return x_BLD.unflatten(-1, (-1, size)).transpose(1, 2)


def mamba(m: Any, u_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """As transformers' `MambaMixer`, but its scan's output is also kept before the gate."""
    x, z = m.in_proj(u_BLD).transpose(1, 2).chunk(2, 1)
    x = modeling_mamba.causal_conv1d_fn(x, m.conv1d.weight.squeeze(1), m.conv1d.bias, "silu")
    step, b, c = m.x_proj(x.transpose(1, 2)).split(m.sizes, -1)
    step = m.dt_proj.weight @ step.transpose(1, 2)
    y = modeling_mamba.mamba_selective_scan(
        x, step, -torch.exp(m.A_log.float()), b.transpose(1, 2), c.transpose(1, 2), D=m.D.float(),
        delta_bias=m.dt_proj.bias.float(), delta_softplus=True,
        use_mambapy=True,
    ).to(u_BLD.dtype)  # fmt: skip
    return m.out_proj((y * F.silu(z)).transpose(1, 2)), y.transpose(1, 2)


def differential(
    attention: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, number: int
) -> Tensor:
    """[B, H, L, K] and [B, G, L, K] → [B, L, D]; heads 2j and 2j + 1 are the maps of pair j."""
    part = attention.inner_cross_attn
    pairs, kv_pairs = q.shape[1] // 2, k.shape[1] // 2
    again = pairs // kv_pairs
    q = torch.cat((q[:, 0::2], q[:, 1::2]), 1)
    k = torch.cat([k[:, s::2].repeat_interleave(again, 1) for s in (0, 1)], 1)
    halves = []
    for s in (0, 1):
        value = v[:, s::2].repeat_interleave(again, 1).repeat(1, 2, 1, 1)
        halves.append(
            F.scaled_dot_product_attention(q, k, value, attn_mask=mask, is_causal=mask is None)
        )
    one, two = torch.cat(halves, -1).transpose(1, 2).chunk(2, 2)
    initial = 0.8 - 0.6 * math.exp(-0.3 * number)
    first = torch.exp((part.lambda_q1 * part.lambda_k1).sum(-1, dtype=torch.float32))
    second = torch.exp((part.lambda_q2 * part.lambda_k2).sum(-1, dtype=torch.float32))
    left = one - (first - second + initial).to(one.dtype) * two
    left = F.rms_norm(left, left.shape[-1:], part.subln.weight.to(left.dtype), 1e-5)
    return (left * (1 - initial)).flatten(2)
