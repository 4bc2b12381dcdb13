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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phikit.chat.format import ChatFormat
from phikit.chat.images.hd import HdImage, HdRule, batch, cut
from phikit.chat.images.read import read_image
from phikit.chat.sounds import read_sound
from phikit.errors import PhikitError, did_you_mean
from phikit.models.audio.encoder import rows_of
from phikit.models.audio.features import log_mel
from phikit.models.multimodal.config import Phi4MMConfig
from phikit.models.multimodal.media import Media


@dataclass(frozen=True)
class MediaPrompt:
    """Token ids of a conversation, and the pictures and clips that its placeholders stand for."""

    ids: list[int]
    media: Media


@dataclass
class _Parts:
    """What was found in the messages so far. `places`: placeholder → how many tokens it takes."""

    rule: HdRule
    texts: str
    images: list[HdImage] = field(default_factory=list)
    clips: list[Tensor] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def text_of(self, part: Any) -> str:
        """The part as it stands in the message's text: itself, or its placeholder."""
        if not isinstance(part, Mapping):
            raise PhikitError(f"it is {part!r}, not a mapping with a type")
        kind = str(part.get("type"))
        if kind not in ("text", "image", "audio"):
            raise PhikitError(
                f"its type is {kind!r}", did_you_mean(kind, ["text", "image", "audio"])
            )
        if kind not in part:
            raise PhikitError(f"its type is {kind!r}, but it has no {kind!r}")
        if kind == "text":
            return str(part["text"])
        if kind == "image":
            self.images.append(cut(read_image(part["image"]), self.rule))
            return self._place(kind, self.images[-1].tokens)
        self.clips.append(features_of(part["audio"]))
        return self._place(kind, rows_of(len(self.clips[-1])))

    def _place(self, kind: str, tokens: int) -> str:
        """A placeholder that no text of the conversation spells, so that none can be taken for it.

        Its number is seen by nobody: the tokens in its place are the same for every number.
        """
        number = 1
        while f"_{number}|>" in self.texts or f"<|{kind}_{number}|>" in self.places:
            number += 1
        place = f"<|{kind}_{number}|>"
        self.places[place] = tokens
        return place


def media_prompt(
    messages: Sequence[Mapping[str, Any]],
    chat: ChatFormat,
    config: Phi4MMConfig,
    generation_prompt: bool = True,
) -> MediaPrompt:
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
    parts = _Parts(HdRule(crop=config.crop, patch=config.vision.patch_size), _all_text(messages))
    plain = [
        {**message, "content": _content(message, number, parts)}
        for number, message in enumerate(messages, 1)
    ]
    rendered = chat.render(plain, generation_prompt, parts.places)
    pictures = batch(parts.images) if parts.images else None
    return MediaPrompt(
        rendered.ids,
        Media(
            crops_NCSS=pictures.crops_NCSS if pictures else None,
            valid_NPP=pictures.valid_NPP if pictures else None,
            grids=tuple(pictures.grids) if pictures else (),
            clips=tuple(parts.clips),
        ),
    )


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


def _content(message: Mapping[str, Any], number: int, parts: _Parts) -> Any:
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return content
    before = len(parts.places)
    texts = []
    for index, part in enumerate(content, 1):
        try:
            texts.append(parts.text_of(part))
        except PhikitError as e:
            raise PhikitError(f"message {number}, part {index}: {e.message}", e.hint) from e
    if message.get("role") == "assistant" and len(parts.places) > before:
        raise PhikitError(
            f"message {number}: an assistant's message has a picture or a clip",
            "phi-4-multimodal answers in words; give what it sees and hears in a user's message",
        )
    return "".join(texts)


def _check_tokens(chat: ChatFormat, config: Phi4MMConfig) -> None:
    wanted = {"image": config.image_id, "audio": config.audio_id}
    given = {kind: chat.tokenizer.id_of(token) for kind, token in chat.template.media}
    if given != wanted:
        raise PhikitError(
            f"the chat format {chat.template.name} has the tokens {given or 'none'} for pictures "
            f"and sound, the model {wanted}",
            "use the tokenizer that came with the model",
        )


def _all_text(messages: Sequence[Mapping[str, Any]]) -> str:
    texts = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            texts.append(content)
        elif isinstance(content, list | tuple):
            texts += [str(part.get("text", "")) for part in content if isinstance(part, Mapping)]
    return "".join(texts)
