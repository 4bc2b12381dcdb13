"""Models in and out of training stages: making one, loading one, writing the result."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from phikit.chat.tokenizer import Tokenizer
from phikit.errors import PhikitError
from phikit.files import atomic_directory, explain_os_errors
from phikit.models import checkpoint
from phikit.models.decoder import Decoder
from phikit.models.decoder_config import DecoderConfig
from phikit.train.adapters import adapt
from phikit.train.settings import TrainSettings

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def new_model(config: DecoderConfig, seed: int) -> Decoder:
    """A model of fresh weights, which depend on the seed alone."""
    model = Decoder(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def model_of(folder: Path) -> Path:
    """Where the model of a stage's folder is.

    Raises:
        PhikitError: it has none; says how a model that no stage made is brought in.
    """
    if (folder / "model").is_dir():
        return folder / "model"
    hint = "give the folder of a stage that makes a model, such as train.sft"
    if (folder / "config.json").exists():
        hint = (
            f"it is a model itself: phikit train start --set model={folder} --out START makes a "
            "stage's folder of it"
        )
    raise PhikitError(f"{folder}: there is no model/ in it", hint)


def load_model(folder: Path) -> Decoder:
    """The model that a stage wrote into its folder, with float32 weights."""
    return checkpoint.load(model_of(folder), dtype=torch.float32)


def model_files(folder: Path) -> list[Path]:
    """The files that the model of a stage's folder is read from: weights and tokenizer."""
    model = model_of(folder)
    return [*checkpoint.weight_files(model), *tokenizer_files(model)]


def tokenizer_files(folder: Path) -> list[Path]:
    """Those that are in a tokenizer's or a model's folder."""
    return [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]


def starting_model(
    folder: Path, settings: TrainSettings, seed: int, longer: tuple[int, float] | None = None
) -> Decoder:
    """The model that a training stage begins with.

    Args:
        settings: say whether an adapter is put on it.
        longer: the context length and RoPE base to extend it to.
    """
    model = load_model(folder)
    if longer is not None:
        model = extended(model, *longer)
    if settings.lora is not None:
        adapt(model, settings.lora, seed)
    return model


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
