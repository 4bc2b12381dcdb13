"""SambaY written down from its equations: float64, one position and one head at a time.

Shares no code with the package; takes a state dict with the published names. Slow on purpose.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def logits(weights: dict[str, Tensor], config: dict[str, int], ids: list[int]) -> Tensor:
    """[L, V] of one document."""
    w = weights
    layers = config["layers"]
    x = w["model.embed_tokens.weight"][ids]
    memory = keys = values = None
    for i in range(layers):
        at = f"model.layers.{i}."
        u = layer_norm(x, w[at + "input_layernorm.weight"], w[at + "input_layernorm.bias"])
        if i % 2 == 0 and i <= layers // 2:
            mixed, memory = mamba(w, at + "attn.", u, config)
        elif i % 2 == 0:
            gate = u @ w[at + "attn.in_proj.weight"].T
            mixed = (memory * silu(gate)) @ w[at + "attn.out_proj.weight"].T
        else:
            rows = u @ w[at + "attn.Wqkv.weight"].T + w[at + "attn.Wqkv.bias"]
            d, width = u.shape[1], config["kv_heads"] * config["head_dim"]
            q = rows[:, :d]
            if i <= layers // 2 + 1:
                keys, values = rows[:, d : d + width], rows[:, d + width :]
            window = config["window"] if i < layers // 2 else 10**9
            mixed = differential(w, at + "attn.", q, keys, values, config, window, i)
        x = x + mixed
        u = layer_norm(
            x, w[at + "post_attention_layernorm.weight"], w[at + "post_attention_layernorm.bias"]
        )
        gate_up = u @ w[at + "mlp.fc1.weight"].T
        half = gate_up.shape[1] // 2
        x = x + (silu(gate_up[:, :half]) * gate_up[:, half:]) @ w[at + "mlp.fc2.weight"].T
    x = layer_norm(x, w["model.final_layernorm.weight"], w["model.final_layernorm.bias"])
    return x @ w["model.embed_tokens.weight"].T


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def mamba(
    w: dict[str, Tensor], at: str, u: Tensor, config: dict[str, int]
) -> tuple[Tensor, Tensor]:
    both = u @ w[at + "in_proj.weight"].T
    inner = both.shape[1] // 2
    flow, gate = both[:, :inner], both[:, inner:]
    taps = w[at + "conv1d.weight"][:, 0]
    convolved = []
    for t in range(len(u)):
        total = w[at + "conv1d.bias"]
        for j in range(taps.shape[1]):
            source = t - taps.shape[1] + 1 + j
            if source >= 0:
                total = total + taps[:, j] * flow[source]
        convolved.append(silu(total))
    a = -torch.exp(w[at + "A_log"])
    rank, states = config["dt_rank"], config["states"]
    h = torch.zeros(inner, states, dtype=u.dtype)
    read = []
    for x in convolved:
        small = w[at + "x_proj.weight"] @ x
        low, b, c = small[:rank], small[rank : rank + states], small[rank + states :]
        raw = w[at + "dt_proj.weight"] @ low + w[at + "dt_proj.bias"]
        dt = torch.log1p(torch.exp(raw))
        h = torch.exp(dt[:, None] * a) * h + (dt * x)[:, None] * b[None]
        read.append((h * c[None]).sum(1) + w[at + "D"] * x)
    memory = torch.stack(read)
    return (memory * silu(gate)) @ w[at + "out_proj.weight"].T, memory


def differential(
    w: dict[str, Tensor], at: str, q: Tensor, k: Tensor, v: Tensor, config: dict[str, int],
    window: int, layer: int,
) -> Tensor:  # fmt: skip
    """Query heads 2j and 2j + 1 are the two maps of pair j; pairs share values in order."""
    size, length = config["head_dim"], len(q)
    inner = at + "inner_cross_attn."
    initial = 0.8 - 0.6 * math.exp(-0.3 * layer)
    lam = (
        torch.exp((w[inner + "lambda_q1"] * w[inner + "lambda_k1"]).sum())
        - torch.exp((w[inner + "lambda_q2"] * w[inner + "lambda_k2"]).sum())
        + initial
    )
    pairs, kv_pairs = config["heads"] // 2, config["kv_heads"] // 2
    outs = []
    for j in range(pairs):
        g = j // (pairs // kv_pairs)
        value = torch.cat(
            (v[:, 2 * g * size : (2 * g + 1) * size],
             v[:, (2 * g + 1) * size : (2 * g + 2) * size]), dim=1,
        )  # fmt: skip
        rows = []
        for t in range(length):
            low = max(0, t - window + 1)
            maps = []
            for s in range(2):
                query = q[t, (2 * j + s) * size : (2 * j + s + 1) * size]
                key = k[low : t + 1, (2 * g + s) * size : (2 * g + s + 1) * size]
                maps.append(torch.softmax(key @ query / math.sqrt(size), 0) @ value[low : t + 1])
            difference = maps[0] - lam * maps[1]
            root = torch.sqrt((difference**2).mean() + 1e-5)
            rows.append(difference / root * w[inner + "subln.weight"] * (1 - initial))
        outs.append(torch.stack(rows))
    return torch.cat(outs, 1) @ w[at + "out_proj.weight"].T + w[at + "out_proj.bias"]
