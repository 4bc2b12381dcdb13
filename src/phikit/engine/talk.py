"""Talking with a model: answers as text, piece by piece as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.load import load_tokenizer
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Request, Sampling
from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.runners import Model
from phikit.engine.talk_media import Prompt, answer, check_senses, prompt_of
from phikit.files import read_json
from phikit.models.architectures import read_config

Message = Mapping[str, Any]

TEMPERATURE, TOP_P = 0.5, 0.95  # where nothing is published

_BROKEN = "\N{REPLACEMENT CHARACTER}"


def text_pieces(ids: Iterator[int], tokenizer: Tokenizer) -> Iterator[str]:
    """The text of tokens as they come, never with half a character.

    A token may end within a character; its text is held back until the rest has come. Bytes that
    never become a character come out as U+FFFD.
    """
    held: list[int] = []
    shown = 0  # characters of the held tokens' text that are out already
    for token in ids:
        held.append(token)
        text = tokenizer.decode(held)
        whole = text.rstrip(_BROKEN)
        if len(whole) > shown:
            yield whole[shown:]
            shown = len(whole)
        if whole == text:
            held, shown = [], 0
    if rest := tokenizer.decode(held)[shown:]:
        yield rest


def respond(
    model: Model,
    form: ChatFormat,
    messages: Sequence[Message],
    sampling: Sampling,
    seed: int = 0,
) -> Iterator[str]:
    """The assistant's answer to a conversation, as pieces of text; its end token is left out.

    Args:
        messages: for a model that sees or hears, their content may be parts (see `chat.media`).

    Raises:
        PhikitError: the conversation does not fit the model's context, or a file cannot be read.
    """
    return _answer(model, form, prompt_of(model.config, form, messages), sampling, seed)


def _answer(
    model: Any, form: ChatFormat, prompt: Prompt, sampling: Sampling, seed: int
) -> Iterator[str]:
    request = Request(prompt.ids, sampling, seed=seed)
    if prompt.media is not None:
        stream = answer(model, prompt, sampling, seed)
    else:
        stream = LocalEngine(model, max_batch=1).stream(request)
    said = (token for token in stream if token not in sampling.stop_ids)
    return text_pieces(said, form.tokenizer)


@dataclass(frozen=True)
class Manner:
    """How answers are drawn.

    Attributes:
        temperature, top_p: when they are None, what is published with the model counts
            (`generation_config.json`), else 0.5 and 0.95. About files answers are greedy then:
            reading and transcribing have one right answer.
        max_tokens: of each answer; None: until it ends, or the context is full.
        seed: of the random draws. The same conversation gets the same answers.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int = 0


AS_PUBLISHED = Manner()


class Conversation:
    """A model that one can talk with. Its weights are read when they are first needed.

    Args:
        directory: a model directory with its tokenizer, or a GGUF file.

    Raises:
        PhikitError: the directory holds no model with a tokenizer.
    """

    def __init__(self, directory: Path, manner: Manner = AS_PUBLISHED) -> None:
        self.directory, self.manner = directory, manner
        self.form = chat_format(load_tokenizer(directory))
        self.published = _published_sampling(directory)
        self.messages: list[Message] = []

    @cached_property
    def model(self) -> Any:
        return load(self.directory)

    @cached_property
    def config(self) -> Any:
        return self.model.config if self.directory.is_file() else read_config(self.directory)

    def reply(
        self, text: str, images: Sequence[Path] = (), sounds: Sequence[Path] = ()
    ) -> Iterator[str]:
        """The answer to the user's next message, as pieces of text.

        The exchange becomes part of the conversation when the answer has been read to its end.
        When the conversation outgrows half of the model's context, its oldest exchanges are
        forgotten.

        Args:
            images, sounds: files that stand before the text, in this order.

        Raises:
            PhikitError: a file cannot be read, or is nothing for this model.
        """
        if images or sounds:
            check_senses(self.config, str(self.directory), bool(sounds))
        asked = [*self.messages, {"role": "user", "content": _content(text, images, sounds)}]
        # the files first: a wrong one is said before the weights are read
        prompt = prompt_of(self.config, self.form, asked)
        while len(asked) > 2 and len(prompt.ids) > self.config.max_positions // 2:
            asked = asked[2:]
            prompt = prompt_of(self.config, self.form, asked)
        sampling = self._sampling(prompt.media is not None)
        seed = self.manner.seed + len(asked)
        pieces = []
        for piece in _answer(self.model, self.form, prompt, sampling, seed):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _sampling(self, media: bool) -> Sampling:
        asked, (temperature, top_p) = self.manner, self.published
        if media:
            temperature = 0.0
        return Sampling(
            temperature=temperature if asked.temperature is None else asked.temperature,
            top_p=top_p if asked.top_p is None else asked.top_p,
            max_tokens=asked.max_tokens or self.config.max_positions,
            stop_ids=self.form.stop_ids,
        )


def _content(
    text: str, images: Sequence[Path], sounds: Sequence[Path]
) -> str | list[dict[str, Any]]:
    if not images and not sounds:
        return text
    return [
        *({"type": "image", "image": path} for path in images),
        *({"type": "audio", "audio": path} for path in sounds),
        {"type": "text", "text": text},
    ]


def _published_sampling(directory: Path) -> tuple[float, float]:
    """Temperature and top-p as published beside a model, or what does for most."""
    file = directory / "generation_config.json"
    raw = read_json(file) if file.is_file() else {}
    if not isinstance(raw, dict) or not raw.get("do_sample"):
        return TEMPERATURE, TOP_P
    return float(raw.get("temperature") or TEMPERATURE), float(raw.get("top_p") or TOP_P)
