"""A conversation with pictures, for a model that sees: ids and the tensors of its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from phikit.chat.format import ChatFormat
from phikit.chat.images import naflex
from phikit.chat.images.read import read_image
from phikit.chat.media import render_media
from phikit.errors import PhikitError
from phikit.models.vision.reasoning import FlexImages
from phikit.models.vision.reasoning_config import ReasoningVisionConfig


@dataclass(frozen=True)
class SeeingPrompt:
    """What `models.vision.reasoning.ReasoningVision.see` takes, for one conversation.

    Attributes:
        ids_1L: token ids, with the model's own token in the places of patches.
        trained_1L: which of them the model learns to say.
        images: None when there are none.
    """

    ids_1L: Tensor
    trained_1L: Tensor
    images: FlexImages | None


def seeing_prompt(
    form: ChatFormat,
    config: ReasoningVisionConfig,
    messages: Sequence[Mapping[str, Any]],
    generation_prompt: bool = True,
    mode: str | None = None,
) -> SeeingPrompt:
    """The prompt of phi-4-reasoning-vision.

    Args:
        messages: see `chat.media`; the value of an "image" part is a file, its bytes or an open
            Pillow image.
        mode: "think" or "nothink"; the model decides for itself when it is left out.

    Raises:
        PhikitError: a picture cannot be read, or the tokenizer is of another model; or as
            `chat.media.render_media`.
    """
    if form.media_ids.get("image") != config.image_id:
        raise PhikitError(
            f"the chat format {form.template.name} puts the token {form.media_ids.get('image')} in "
            f"the places of pictures, but the model has them at {config.image_id}",
            "take the tokenizer that belongs to the model",
        )
    rule = naflex.FlexRule(config.vision.patch_size, config.least_patches, config.most_patches)
    prompt = render_media(
        form,
        messages,
        {"image": lambda source: naflex.cut(read_image(source), rule)},
        generation_prompt,
        mode,
    )
    pictures = prompt.media["image"]
    return SeeingPrompt(
        torch.tensor([prompt.ids]),
        torch.tensor([prompt.trained]),
        naflex.batch(pictures) if pictures else None,
    )
