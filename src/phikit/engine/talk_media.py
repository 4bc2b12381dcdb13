"""Answers about pictures and sound, as text, piece by piece as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from phikit.chat.format import chat_format
from phikit.chat.images.prompt import SeeingPrompt, seeing_prompt
from phikit.chat.multimodal import media_prompt
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.load import load
from phikit.engine.talk import text_pieces
from phikit.errors import PhikitError
from phikit.models.architectures import read_config
from phikit.models.greedy import generate
from phikit.models.multimodal.config import Phi4MMConfig
from phikit.models.vision.reasoning import ReasoningVision
from phikit.models.vision.reasoning_config import ReasoningVisionConfig


def respond_to_files(
    directory: Path, text: str, images: Sequence[Path], sounds: Sequence[Path]
) -> Iterator[str]:
    """The likeliest answer to pictures, then clips, then a text, which may be empty.

    Raises:
        PhikitError: the model neither sees nor hears, or a file cannot be read.
    """
    config = read_config(directory)
    _check_senses(directory, config, bool(sounds))
    form = chat_format(Tokenizer.load(directory))
    content = [
        *({"type": "image", "image": path} for path in images),
        *({"type": "audio", "audio": path} for path in sounds),
        {"type": "text", "text": text},
    ]
    messages = [{"role": "user", "content": content}]
    # the files first: a wrong one is said before the weights are read
    if isinstance(config, Phi4MMConfig):
        heard = media_prompt(messages, form, config)
        tokens = load(directory).answer(
            heard.ids, heard.media, max_tokens=config.max_positions, stop_ids=form.stop_ids
        )
    else:
        seen = seeing_prompt(form, config, messages)
        tokens = _seeing_answer(load(directory), seen, form.stop_ids)
    return text_pieces((t for t in tokens if t not in form.stop_ids), form.tokenizer)


def _check_senses(directory: Path, config: Any, sounds: bool) -> None:
    if isinstance(config, Phi4MMConfig):
        return
    sees = isinstance(config, ReasoningVisionConfig)
    if not sees or sounds:
        lacks = "does not hear" if sees else "neither sees nor hears"
        raise PhikitError(
            f"{directory}: a {config.architecture} {lacks}",
            "give phi-4-multimodal, or leave the files out",
        )


@torch.no_grad()
def _seeing_answer(
    model: ReasoningVision, prompt: SeeingPrompt, stop_ids: Sequence[int]
) -> Iterator[int]:
    room = model.config.max_positions - prompt.ids_1L.shape[1]
    return generate(
        model,
        model.embed(prompt.ids_1L, prompt.images),
        room,
        stop_ids,
        model.attend_to(prompt.ids_1L, prompt.images),
    )
