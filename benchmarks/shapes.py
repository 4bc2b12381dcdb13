"""Random weights of real shapes, for this package and llama.cpp: speed needs no learned ones."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn

from phikit.engine.quant.linear import QuantLinear
from phikit.engine.quant.packing import Scheme
from phikit.engine.quant.settings import Settings, as_json, targets
from phikit.engine.quant.shards import Shards
from phikit.files import write_json
from phikit.models.architectures import build, config_json
from phikit.models.checkpoint import make_buffers
from phikit.models.decoder_config import DecoderConfig

_TEMPLATE = 2**24  # random elements, repeated: what a weight is does not change how fast it is read
#: GGUF's name: its number, weights per block, bytes per block.
FORMATS = {"BF16": (30, 1, 2), "Q8_0": (8, 32, 34), "Q4_0": (2, 32, 18)}


def model(config: Any, kind: str, group: int = 32) -> Any:
    """A model of the family in "bf16", or with its matrices in "int8" or "int4"."""
    with torch.device("meta"):
        made = build(config).to(torch.bfloat16)
    layers = {} if kind == "bf16" else targets(made, Settings(Scheme(kind, group)))
    generator = torch.Generator().manual_seed(0)
    narrow = (torch.randn(_TEMPLATE, generator=generator) * 0.02).to(torch.bfloat16)
    small = torch.randint(0, 256, (_TEMPLATE,), generator=generator).to(torch.uint8)
    for name, module in list(made.named_modules()):
        if name in layers:
            if module.bias is not None:
                module.bias = nn.Parameter(torch.zeros(module.bias.shape, dtype=torch.bfloat16))
            layer = QuantLinear.like(made, name, layers[name], "random weights")
            data = _repeated(small, layer.data.shape)
            scales = torch.full(layer.scales.shape, 0.004 if kind == "int4" else 0.0003)
            layer.take(data, scales.to(torch.bfloat16))
            continue
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if config.tied and name == "lm_head":
                continue
            ones = parameter.dim() == 1
            value = torch.ones(parameter.shape) if ones else _repeated(narrow, parameter.shape)
            made_of = nn.Parameter(value.to(parameter.dtype), requires_grad=False)
            setattr(module, leaf, made_of)
    if config.tied and kind == "bf16":
        made.lm_head.weight = made.model.embed_tokens.weight
    make_buffers(made)
    return made.eval()


def store(config: Any, kind: str, folder: Path) -> None:
    """A quantised model directory of random weights, which are never whole in memory."""
    with torch.device("meta"):
        made = build(config)
    how = Settings(Scheme(kind))
    layers = targets(made, how)
    generator = torch.Generator().manual_seed(0)
    narrow = (torch.randn(_TEMPLATE, generator=generator) * 0.02).to(torch.bfloat16)
    small = torch.randint(0, 256, (_TEMPLATE,), generator=generator).to(torch.uint8)
    names = [f"{name}.{leaf}" for name in layers for leaf in ("data", "scales")]
    shards = Shards(folder, [*names, *made.state_dict()])
    for name, parameter in made.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in layers:
            n, k = parameter.shape
            data, scales = QuantLinear.packed_shapes(k, n, layers[layer])
            shards.add(f"{layer}.data", _repeated(small, torch.Size(data[0])))
            shards.add(f"{layer}.scales", torch.full(scales[0], 0.004, dtype=scales[1]))
        elif parameter.dim() == 1:
            shards.add(name, torch.ones(parameter.shape, dtype=torch.bfloat16))
        else:
            shards.add(name, _repeated(narrow, parameter.shape))
    shards.finish()
    raw = config_json(config, "bfloat16") | {"quantization_config": as_json(how, layers)}
    write_json(folder / "config.json", raw)


def _repeated(template: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    count = int(np.prod(shape))
    out = torch.empty(count, dtype=template.dtype)
    for start in range(0, count, _TEMPLATE):
        part = out[start : start + _TEMPLATE]
        part.copy_(template[: len(part)])
    return out.view(shape)


def streamed_bytes(made: Any) -> int:
    """Bytes of weights that one token reads: all but the embedding, of which it reads a row."""
    total = sum(p.numel() * p.element_size() for p in made.parameters())
    total += sum(b.numel() * b.element_size() for b in made.buffers())
    embedding = made.model.embed_tokens.weight
    tied = made.lm_head.weight is embedding if isinstance(made.lm_head, nn.Linear) else False
    return total - (0 if tied else embedding.numel() * embedding.element_size())


def write_gguf(path: Path, config: DecoderConfig, form: str) -> None:
    """The same shape as a llama-architecture GGUF file: its matrices, and an output of their own
    type (the embedding too, of which llama.cpp reads one row)."""
    c, f = config, config.intermediate_size
    d, q, kv = c.hidden_size, c.heads * c.head_dim, c.kv_heads * c.head_dim
    tensors: list[tuple[str, tuple[int, ...], str]] = [
        ("token_embd.weight", (c.vocab_size, d), form),
        ("output_norm.weight", (d,), "F32"),
    ]
    if not c.tied:
        tensors.append(("output.weight", (c.vocab_size, d), form))
    for i in range(c.layers):
        shapes = {"attn_q": (q, d), "attn_k": (kv, d), "attn_v": (kv, d), "attn_output": (d, q),
                  "ffn_gate": (f, d), "ffn_up": (f, d), "ffn_down": (d, f)}  # fmt: skip
        tensors += [(f"blk.{i}.{n}.weight", s, form) for n, s in shapes.items()]
        tensors += [(f"blk.{i}.{n}.weight", (d,), "F32") for n in ("attn_norm", "ffn_norm")]
    with path.open("wb") as file:
        _header(file, _metadata(config), tensors)
        rng = np.random.default_rng(0)
        for _, shape, kind in tensors:
            _pad(file)
            _data(file, int(np.prod(shape)), kind, rng)


def _metadata(c: DecoderConfig) -> dict[str, Any]:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"t{i}" for i in range(c.vocab_size - len(tokens))]
    return {
        "general.architecture": "llama",
        "llama.context_length": min(c.max_positions, 8192),
        "llama.embedding_length": c.hidden_size,
        "llama.block_count": c.layers,
        "llama.feed_forward_length": c.intermediate_size,
        "llama.attention.head_count": c.heads,
        "llama.attention.head_count_kv": c.kv_heads,
        "llama.rope.dimension_count": c.head_dim,  # llama.cpp wants whole heads rotated
        "llama.rope.freq_base": float(c.rope_theta),
        "llama.attention.layer_norm_rms_epsilon": float(c.norm_eps),
        "llama.vocab_size": c.vocab_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * c.vocab_size,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (c.vocab_size - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def _header(file: BinaryIO, metadata: dict[str, Any], tensors: list[tuple[Any, ...]]) -> None:
    file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        file.write(_text(key) + _value(value))
    offset = 0
    for name, shape, kind in tensors:
        number, _, _ = FORMATS.get(kind, (0, 1, 4))
        file.write(_text(name) + struct.pack("<I", len(shape)))
        file.write(struct.pack(f"<{len(shape)}Q", *shape[::-1]))
        file.write(struct.pack("<IQ", number, offset))
        offset += -(-_bytes(int(np.prod(shape)), kind) // 32) * 32


def _bytes(count: int, kind: str) -> int:
    _, weights, size = FORMATS.get(kind, (0, 1, 4))
    return count // weights * size


def _pad(file: BinaryIO) -> None:
    file.write(b"\0" * (-file.tell() % 32))


def _data(file: BinaryIO, count: int, kind: str, rng: np.random.Generator) -> None:
    if kind == "F32":
        file.write(np.ones(count, "<f4").tobytes())
        return
    _, _, size = FORMATS[kind]
    if kind == "BF16":
        values = (rng.standard_normal(2**20, np.float32) * 0.02).view(np.uint32) >> 16
        block = values.astype("<u2").tobytes()
    else:
        raw = rng.integers(0, 256, (2**16, size), np.uint8)
        scale = np.float16(0.004 if kind == "Q4_0" else 0.0003)
        raw[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
        block = raw.tobytes()
    total = _bytes(count, kind)
    for start in range(0, total, len(block)):
        file.write(block[: total - start])


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    kind, code = (8, "") if isinstance(value[0], str) else (6, "f")
    kind, code = (5, "i") if isinstance(value[0], int) else (kind, code)
    body = b"".join(map(_text, value)) if kind == 8 else struct.pack(f"<{len(value)}{code}", *value)
    return struct.pack("<IIQ", 9, kind, len(value)) + body
