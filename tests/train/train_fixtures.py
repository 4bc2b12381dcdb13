"""A tiny model, and tiny data that it can learn."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np

from phikit.data.pack import Rows, pack
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.train.models import new_model

SPECIAL = [
    "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|im_start|>",
    "<|im_end|>", "<|im_sep|>", "<|endofprompt|>", "<think>", "</think>", "<|pad|>",
]  # fmt: skip
TINY = DecoderConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2,
    head_dim=8, max_positions=64, tied=True, eos_ids=(1,), pad_id=0,
)  # fmt: skip


def tiny_model(seed: int = 0, kv_heads: int = TINY.kv_heads) -> Decoder:
    return new_model(replace(TINY, kv_heads=kv_heads), seed)


def tiny_rows(length: int = 32, documents: int = 60, seed: int = 0) -> Rows:
    """Documents in which each token follows from the one before: learnable in a few steps."""
    stream = random.Random(f"{seed}/documents")
    examples = []
    for _ in range(documents):
        ids = [stream.randrange(2, 64)]
        while len(ids) < stream.randrange(5, 40):
            ids.append((ids[-1] * 5 + 3) % 62 + 2)
        examples.append((ids, None))
    return pack([e for e in examples if len(e[0]) > 1], length, 0)


def write_shards(root: Path, documents: list[list[int]]) -> None:
    """Documents as the stage `data.shards` leaves them."""
    flat = np.concatenate([np.array(d, dtype="<u4") for d in documents])
    (root / "tokens.bin").write_bytes(flat.tobytes())
    bounds = np.cumsum([0, *(len(d) for d in documents)]).astype(np.int64)
    np.save(root / "bounds.npy", bounds)
    np.save(root / "sources.npy", np.zeros(len(documents), np.int64))
    index = {"sources": ["synthetic"], "tokens": len(flat), "documents": len(documents)}
    (root / "index.json").write_text(json.dumps(index))
