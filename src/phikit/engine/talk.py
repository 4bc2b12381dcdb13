"""Talking with a model: answers as text, piece by piece as they are written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.load import load_tokenizer
from phikit.chat.tokenizer import Tokenizer
from phikit.engine.base import Request, Sampling
from phikit.engine.load import load
from phikit.engine.local import LocalEngine
from phikit.engine.runners import Model

Message = Mapping[str, str]

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

    Raises:
        PhikitError: the conversation does not fit the model's context.
    """
    prompt = tuple(form.render(messages, generation_prompt=True).ids)
    request = Request(prompt, sampling, seed=seed)
    stream = LocalEngine(model, max_batch=1).stream(request)
    said = (token for token in stream if token not in sampling.stop_ids)
    return text_pieces(said, form.tokenizer)


class Conversation:
    """A model that one can talk with.

    Args:
        directory: a model directory with its tokenizer, or a GGUF file.
        temperature, top_p: how answers are drawn; temperature 0 is greedy.
        seed: of the random draws. The same conversation gets the same answers.

    Raises:
        PhikitError: the directory cannot be loaded.
    """

    def __init__(
        self, directory: Path, temperature: float = 0.5, top_p: float = 0.95, seed: int = 0
    ) -> None:
        self.model = load(directory)
        self.form = chat_format(load_tokenizer(directory))
        self.sampling = Sampling(
            temperature=temperature,
            top_p=top_p,
            max_tokens=self.model.config.max_positions,
            stop_ids=self.form.stop_ids,
        )
        self.seed = seed
        self.messages: list[Message] = []

    def reply(self, text: str) -> Iterator[str]:
        """The answer to the user's next message, as pieces of text.

        The exchange becomes part of the conversation when the answer has been read to its end.
        When the conversation outgrows half of the model's context, its oldest exchanges are
        forgotten.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        while len(asked) > 2 and self._length(asked) > self.model.config.max_positions // 2:
            asked = asked[2:]
        pieces = []
        for piece in respond(self.model, self.form, asked, self.sampling, self.seed + len(asked)):
            pieces.append(piece)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(pieces)}]

    def _length(self, messages: Sequence[Message]) -> int:
        return len(self.form.render(messages, generation_prompt=True).ids)
