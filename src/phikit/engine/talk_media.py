"""Answers about pictures and sound, as text, piece by piece as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from phikit.chat.format import chat_format
from phikit.chat.multimodal import media_prompt
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.load import load
from phikit.engine.talk import text_pieces
from phikit.errors import PhikitError
from phikit.models.architectures import read_config
from phikit.models.multimodal.config import Phi4MMConfig


def respond_to_files(
    directory: Path, text: str, images: Sequence[Path], sounds: Sequence[Path]
) -> Iterator[str]:
    """The likeliest answer to pictures, then clips, then a text, which may be empty.

    Raises:
        PhikitError: the model neither sees nor hears, or a file cannot be read.
    """
    config = read_config(directory)
    if not isinstance(config, Phi4MMConfig):
        raise PhikitError(
            f"{directory}: a {config.architecture} neither sees nor hears",
            "give phi-4-multimodal, or leave the pictures and sounds out",
        )
    form = chat_format(Tokenizer.load(directory))
    content = [
        *({"type": "image", "image": path} for path in images),
        *({"type": "audio", "audio": path} for path in sounds),
        {"type": "text", "text": text},
    ]
    # the files first: a wrong one is said before the weights are read
    prompt = media_prompt([{"role": "user", "content": content}], form, config)
    model = load(directory)
    tokens = model.answer(
        prompt.ids, prompt.media, max_tokens=config.max_positions, stop_ids=form.stop_ids
    )
    return text_pieces((t for t in tokens if t not in form.stop_ids), form.tokenizer)
