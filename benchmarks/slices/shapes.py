"""Slices of the models at their real widths: configurations, and weights in a file.

A slice keeps the real model's layers as they are and has fewer of them. Its vocabulary is cut by
the same factor, so that the head and the loss are the part of the whole that they are in the real
model.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from phikit.models.architectures import build
from phikit.models.family import config

LAYERS = {"phi-4-mini": 4, "phi-4": 4, "flash": 5}
#: of flash's layers, those of a decoder of 8: sliding window, Mamba, full, gated memory, cross
FLASH_LAYERS = (3, 4, 5, 6, 7)
NAMES = {"flash": "phi-4-mini-flash-reasoning"}


def shape(name: str) -> Any:
    """The slice's configuration."""
    full = config(NAMES.get(name, name))
    vocabulary = full.vocab_size * LAYERS[name] // full.layers
    ids: dict[str, Any] = dict(bos_id=0, eos_ids=(0,), pad_id=0)
    layers = 8 if name == "flash" else LAYERS[name]
    return replace(full, layers=layers, vocab_size=vocabulary, **ids)


def skeleton(name: str) -> nn.Module:
    """The slice in bfloat16 on the meta device."""
    with torch.device("meta"):
        model = build(shape(name)).bfloat16()
    if name == "flash":
        layers: Any = model.model.layers  # type: ignore[union-attr]
        model.model.layers = nn.ModuleList(layers[i] for i in FLASH_LAYERS)  # type: ignore[union-attr]
    return model


def write(name: str, file: Path) -> None:
    """Random weights, the same numbers over and over: only their sizes count here."""
    block = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)) * 0.02
    tensors: dict[str, Tensor] = {}
    for key, like in skeleton(name).state_dict().items():
        if key == "lm_head.weight" and shape(name).tied:
            continue
        tensor = torch.empty(like.shape, dtype=like.dtype)
        if tensor.dim() == 1:
            tensor.fill_(0.0 if key.endswith("bias") else 1.0)
        else:
            flat = tensor.view(-1)
            for start in range(0, len(flat), len(block)):
                part = flat[start : start + len(block)]
                part.copy_(block[: len(part)])
        if key.endswith("A_log"):
            tensor.copy_(torch.arange(1, like.shape[1] + 1).log().expand_as(tensor))
        if key.endswith("dt_proj.bias"):
            tensor.fill_(-4.6)  # time steps of about 0.01
        tensors[key] = tensor
    save_file(tensors, file)


def filled(name: str, file: Path) -> nn.Module:
    """The slice with the file's weights, which stay in the file until they are read."""
    model = skeleton(name)
    tensors = load_file(file)
    if shape(name).tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    if shape(name).tied:
        model.lm_head.weight = model.model.embed_tokens.weight  # type: ignore[union-attr]
    return model
