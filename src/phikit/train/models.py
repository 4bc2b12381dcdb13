"""Models in and out of training stages: making one, loading one, writing the result."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from phikit.chat.tokenizer import Tokenizer
from phikit.errors import PhikitError
from phikit.files import atomic_directory, explain_os_errors
from phikit.models import checkpoint
from phikit.models.config import DecoderConfig
from phikit.models.decoder import Decoder
from phikit.stage import Config

VOCABULARY_MULTIPLE = 64  # rows of the embedding: products like round sizes
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class ModelSettings(Config):
    """The shape of a model that is trained from nothing; nano's by default."""

    hidden_size: int = Field(default=128, ge=1, description="model width")
    intermediate_size: int = Field(default=384, ge=1, description="inner width of the MLP")
    layers: int = Field(default=4, ge=1, description="decoder layers")
    heads: int = Field(default=4, ge=1, description="query heads")
    kv_heads: int = Field(default=2, ge=1, description="key-value heads")
    head_dim: int = Field(default=32, ge=2, description="width of a head")
    rope_theta: float = Field(
        default=10_000.0,
        gt=0,
        description="RoPE base (phi-4's pre-training base was not published)",
    )
    norm_eps: float = Field(default=1e-5, gt=0, description="epsilon of RMSNorm")
    tied: bool = Field(default=True, description="one matrix for embeddings and head (phi-4: no)")
    init_std: float = Field(
        default=0.02, gt=0, description="standard deviation of the first weights"
    )

    def decoder(self, tokenizer: Tokenizer, context: int) -> DecoderConfig:
        """The whole configuration, for a tokenizer and a context length."""
        special = tokenizer.special
        end = special.get("<|endoftext|>")
        rows = -(-tokenizer.vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
        return DecoderConfig(
            vocab_size=rows,
            max_positions=context,
            bos_id=end,
            eos_ids=tuple(special[t] for t in ("<|im_end|>", "<|endoftext|>") if t in special),
            pad_id=special.get("<|pad|>", end),
            **self.model_dump(),
        )


def new_model(config: DecoderConfig, seed: int) -> Decoder:
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def load_model(folder: Path) -> Decoder:
    """The model that a stage wrote into its folder, with float32 weights."""
    return checkpoint.load(folder / "model", dtype=torch.float32)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a stage's model, or that of `data.tokenizer` itself."""
    for name in ("model", "tokenizer"):
        if (folder / name).is_dir():
            return Tokenizer.load(folder / name)
    raise PhikitError(f"{folder}: neither model/ nor tokenizer/ is in it")


def extended(model: Decoder, context: int, rope_theta: float) -> Decoder:
    """The same weights at another context length and RoPE base."""
    longer = Decoder(model.config.with_context(context, rope_theta))
    longer.load_state_dict(model.state_dict())
    return longer


def pad_id(model: Decoder) -> int:
    """The id that fills rows; it is never attended to nor trained on, so any will do."""
    return model.config.pad_id or 0


def write_model(model: Decoder, tokenizer_from: Path, folder: Path, dtype: str) -> None:
    """Writes `folder`/model atomically, the tokenizer's files beside the weights."""
    with atomic_directory(folder / "model") as new:
        checkpoint.save(model, new, getattr(torch, dtype))
        for name in TOKENIZER_FILES:
            with explain_os_errors(tokenizer_from / name, "copying"):
                shutil.copyfile(tokenizer_from / name, new / name)


def parts(inputs: Sequence[str], name: str) -> list[str]:
    """The keys of an input that takes any number of stages: "name.0", "name.1", ..."""
    found = [key for key in inputs if key.split(".")[0] == name]
    return sorted(found, key=lambda key: int(key.partition(".")[2] or 0))
