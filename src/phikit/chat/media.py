"""Messages that hold pictures or sounds, to token ids and what goes in at their places.

    prompt = render_media(chat_format, messages, {"image": see}, generation_prompt=True)

A message's content is text, or a list of parts in their order: `{"type": "text", "text": ...}` and
`{"type": "image", "image": ...}`, whose value `see` understands: a file, say. The conversation then
has as many placeholder tokens in that place as the prepared picture asks for. Text never becomes a
placeholder, whatever it spells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from phikit.chat.format import ChatFormat
from phikit.errors import PhikitError, did_you_mean


class Prepared(Protocol):
    """A picture or sound ready for its encoder."""

    @property
    def tokens(self) -> int:
        """How many tokens of the prompt it takes."""
        ...


@dataclass(frozen=True)
class MediaPrompt:
    """A conversation as ids, as `format.Rendered`, and its media.

    Attributes:
        media: kind → what was prepared, in the order of its places in `ids`.
    """

    ids: list[int]
    trained: list[bool]
    media: dict[str, list[Any]]


def render_media(
    form: ChatFormat,
    messages: Sequence[Mapping[str, Any]],
    prepare: Mapping[str, Callable[[Any], Prepared]],
    generation_prompt: bool = False,
    mode: str | None = None,
) -> MediaPrompt:
    """Renders a conversation with media in it.

    Args:
        messages: as for `ChatFormat.render`, or with parts as their content.
        prepare: kind of part → what makes a part's value ready for the model.
        generation_prompt, mode: as for `ChatFormat.render`.

    Raises:
        PhikitError: a part is of a kind that is not in `prepare`, has no value, or stands in an
            answer; or as `ChatFormat.render`. Names the message's number.
    """
    spelled = " ".join(map(_text_of, messages))
    media: dict[str, list[Any]] = {kind: [] for kind in prepare}
    counts: dict[str, int] = {}
    rendered: list[dict[str, Any]] = []

    def place(kind: str, value: Any) -> str:
        ready = prepare[kind](value)
        media[kind].append(ready)
        # a placeholder that is spelled in no text
        number = len(counts) + 1
        while f"<|{kind}_{number}|>" in spelled or f"<|{kind}_{number}|>" in counts:
            number += 1
        counts[f"<|{kind}_{number}|>"] = ready.tokens
        return f"<|{kind}_{number}|>"

    for number, message in enumerate(messages, 1):
        content = message.get("content")
        if not isinstance(content, str):
            content = _content(message, number, place, prepare, form.template.media_gap)
        rendered.append({**message, "content": content})
    out = form.render(rendered, generation_prompt, counts, mode)
    return MediaPrompt(out.ids, out.trained, media)


def _content(
    message: Mapping[str, Any],
    number: int,
    place: Callable[[str, Any], str],
    kinds: Mapping[str, Any],
    gap: str,
) -> str:
    """A message's parts as one text with placeholders."""
    parts = message.get("content")
    role = message.get("role", "")
    if not isinstance(parts, Sequence):
        raise PhikitError(f"message {number} ({role}) has neither text nor parts in its content")
    text, open_gap = "", False
    for index, part in enumerate(parts, 1):
        kind = part.get("type", "") if isinstance(part, Mapping) else ""
        if kind not in (*kinds, "text"):
            raise PhikitError(
                f"message {number} ({role}) has a part of the type {kind!r}",
                did_you_mean(kind, [*kinds, "text"]),
            )
        if kind not in part:
            raise PhikitError(
                f"message {number} ({role}) has a part of the type {kind!r} without {kind!r}",
                f'write {{"type": "{kind}", "{kind}": ...}}',
            )
        if kind != "text" and role == "assistant":
            raise PhikitError(
                f"message {number} is an answer and holds a part of the type {kind!r}",
                "answers are text",
            )
        try:
            piece = part["text"] if kind == "text" else place(kind, part[kind])
        except PhikitError as e:
            raise PhikitError(f"message {number}, part {index}: {e.message}", e.hint) from e
        if not isinstance(piece, str):
            raise PhikitError(f"message {number} ({role}) has a text part that is no text")
        text += (gap if open_gap and piece and not piece.startswith(gap) else "") + piece
        open_gap = kind != "text" or (open_gap and not piece)
    return text


def _text_of(message: Mapping[str, Any]) -> str:
    """All that a message spells, its text parts joined as they will be."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))
