"""A tiny model, and tiny data that it can learn."""

from __future__ import annotations

import random

from phikit.data.pack import Rows, pack
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.train.models import new_model

TINY = DecoderConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2,
    head_dim=8, max_positions=64, tied=True, eos_ids=(1,), pad_id=0,
)  # fmt: skip


def tiny_model(seed: int = 0) -> Decoder:
    return new_model(TINY, seed)


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
