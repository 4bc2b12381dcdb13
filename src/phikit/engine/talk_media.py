"""Prompts with pictures and sound among their words, and answers to them, token by token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from phikit.chat.format import ChatFormat
from phikit.chat.images.prompt import SeeingPrompt, seeing_prompt
from phikit.chat.multimodal import MultimodalPrompt, media_prompt
from phikit.engine.base import Sampling
from phikit.engine.sampling import draws
from phikit.errors import PhikitError
from phikit.models.continuation import Choose, generate
from phikit.models.multimodal.config import Phi4MMConfig
from phikit.models.multimodal.model import Phi4MM
from phikit.models.vision.reasoning import ReasoningVision
from phikit.models.vision.reasoning_config import ReasoningVisionConfig


@dataclass(frozen=True)
class Prompt:
    """A conversation up to the answer: its ids, and what is seen and heard at their places."""

    ids: tuple[int, ...]
    media: SeeingPrompt | MultimodalPrompt | None = None


def has_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a message's content is a list of parts."""
    return any(isinstance(message.get("content"), list | tuple) for message in messages)


def check_senses(config: Any, where: str, sounds: bool = False) -> None:
    """Whether a model of this configuration can take pictures, and sounds.

    Raises:
        PhikitError: it cannot.
    """
    if isinstance(config, Phi4MMConfig):
        return
    sees = isinstance(config, ReasoningVisionConfig)
    if not sees or sounds:
        lacks = "does not hear" if sees else "neither sees nor hears"
        raise PhikitError(
            f"{where}: a {config.architecture} {lacks}",
            "give phi-4-multimodal, or leave the files out",
        )


def prompt_of(config: Any, form: ChatFormat, messages: Sequence[Mapping[str, Any]]) -> Prompt:
    """Renders a conversation, and reads the files that it names.

    Raises:
        PhikitError: a file cannot be read, the conversation does not fit the chat format, or the
            model neither sees nor hears.
    """
    if not has_media(messages):
        return Prompt(tuple(form.render(messages, generation_prompt=True).ids))
    check_senses(config, "a message has parts")
    if isinstance(config, Phi4MMConfig):
        heard = media_prompt(messages, form, config)
        return Prompt(tuple(heard.ids), heard)
    seen = seeing_prompt(form, config, messages)
    return Prompt(tuple(seen.ids_1L[0].tolist()), seen)


def answer(
    model: Phi4MM | ReasoningVision, prompt: Prompt, sampling: Sampling, seed: int
) -> Iterator[int]:
    """Yields the tokens of an answer to pictures or sound, an end token included.

    The draws are those of the engine: they depend on the seed alone.

    Raises:
        PhikitError: the prompt leaves no room for an answer.
    """
    room = model.config.max_positions - len(prompt.ids)
    if room < 1:
        raise PhikitError(
            f"the prompt has {len(prompt.ids)} tokens, pictures and sound included; the model's "
            f"context is {model.config.max_positions}, so none can follow",
            "give fewer or smaller files",
        )
    tokens, choose = min(sampling.max_tokens, room), draws(sampling, seed)
    if isinstance(prompt.media, MultimodalPrompt):
        assert isinstance(model, Phi4MM)
        return model.answer(prompt.ids, prompt.media.media, tokens, sampling.stop_ids, choose)
    assert isinstance(model, ReasoningVision) and prompt.media is not None
    return _seeing(model, prompt.media, tokens, sampling.stop_ids, choose)


@torch.no_grad()
def _seeing(
    model: ReasoningVision,
    prompt: SeeingPrompt,
    max_tokens: int,
    stop_ids: Sequence[int],
    choose: Choose,
) -> Iterator[int]:
    embedded_1LD = model.embed(prompt.ids_1L, prompt.images)
    rule = model.attend_to(prompt.ids_1L, prompt.images)
    return generate(model, embedded_1LD, max_tokens, stop_ids, rule, choose)
