"""A conversation with pictures and sound: to token ids and to what phi-4-multimodal takes.

    messages = [{"role": "user", "content": [
        {"type": "image", "image": "page.png"},
        {"type": "audio", "audio": "question.wav"},
        {"type": "text", "text": "Answer in one sentence."},
    ]}]
    prompt = media_prompt(messages, chat_format(tokenizer), model.config)
    answer = list(model.answer(prompt.ids, prompt.media, stop_ids=chat.stop_ids))

The parts of a message stand one after another, in their order, with nothing between. A picture or
clip takes as many tokens as it has rows: `Media` says how many that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phikit.chat.format import ChatFormat
from phikit.chat.images.hd import HdRule, batch, cut
from phikit.chat.images.read import read_image
from phikit.chat.media import render_media
from phikit.chat.sounds import read_sound
from phikit.errors import PhikitError
from phikit.models.audio.encoder import rows_of
from phikit.models.audio.features import log_mel
from phikit.models.multimodal.config import Phi4MMConfig
from phikit.models.multimodal.media import Media


@dataclass(frozen=True)
class MultimodalPrompt:
    """Token ids of a conversation, and the pictures and clips that its placeholders stand for."""

    ids: list[int]
    media: Media


def media_prompt(
    messages: Sequence[Mapping[str, Any]],
    chat: ChatFormat,
    config: Phi4MMConfig,
    generation_prompt: bool = True,
) -> MultimodalPrompt:
    """Renders a conversation, and reads the files that it names.

    Args:
        messages: each has a `role` and its `content`: text, or a list of parts. A part is
            `{"type": "text", "text": ...}`; `{"type": "image", "image": ...}` with a file, the
            bytes of one, or an open Pillow image; or `{"type": "audio", "audio": ...}` with a
            file, the bytes of one, or (samples, samples per second).
        chat: of phi-4-multimodal's kind, which has places for pictures and sound.
        generation_prompt: end with the start of an answer.

    Raises:
        PhikitError: a file cannot be read, a part is of no known type, or an assistant's message
            has a picture or a clip; names the message and the part. Or the chat format's tokens
            for pictures and sound are not the model's.
    """
    _check_tokens(chat, config)
    rule = HdRule(crop=config.crop, patch=config.vision.patch_size)
    rendered = render_media(
        chat,
        messages,
        {
            "image": lambda image: cut(read_image(image), rule),
            "audio": lambda sound: _Clip(features_of(sound)),
        },
        generation_prompt,
    )
    images, clips = rendered.media["image"], rendered.media["audio"]
    pictures = batch(images) if images else None
    return MultimodalPrompt(
        rendered.ids,
        Media(
            crops_NCSS=pictures.crops_NCSS if pictures else None,
            valid_NPP=pictures.valid_NPP if pictures else None,
            grids=tuple(pictures.grids) if pictures else (),
            clips=tuple(clip.frames_TM for clip in clips),
        ),
    )


@dataclass(frozen=True)
class _Clip:
    """A clip's log-mel frames [T, 80]."""

    frames_TM: Tensor

    @property
    def tokens(self) -> int:
        return rows_of(len(self.frames_TM))


def features_of(sound: Any) -> Tensor:
    """Log-mel frames [T, 80] of a sound file, its bytes, or (samples, samples per second).

    Raises:
        PhikitError: it cannot be read, is too short, or has too few samples per second.
    """
    if isinstance(sound, str | Path | bytes):
        wave, rate = read_sound(sound)
        try:
            return log_mel(wave, rate)
        except PhikitError as e:
            name = "the sound" if isinstance(sound, bytes) else sound
            raise PhikitError(f"{name}: {e.message}", e.hint) from e
    if isinstance(sound, tuple) and len(sound) == 2 and isinstance(sound[0], np.ndarray | Tensor):
        wave = torch.as_tensor(sound[0])
        if not wave.is_floating_point():  # whole numbers: of 16 bits, for example
            wave = wave / (torch.iinfo(wave.dtype).max + 1)
        return log_mel(wave, int(sound[1]))
    raise PhikitError(
        f"{type(sound).__name__} is no sound", "give a file, its bytes, or (samples, rate)"
    )


def _check_tokens(chat: ChatFormat, config: Phi4MMConfig) -> None:
    wanted = {"image": config.image_id, "audio": config.audio_id}
    given = {kind: chat.tokenizer.id_of(token) for kind, token in chat.template.media}
    if given != wanted:
        raise PhikitError(
            f"the chat format {chat.template.name} has the tokens {given or 'none'} for pictures "
            f"and sound, the model {wanted}",
            "use the tokenizer that came with the model",
        )
