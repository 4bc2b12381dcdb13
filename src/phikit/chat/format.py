"""Chat messages to token ids, with the mask of what is trained on.

`ChatFormat` renders any `templates.Template` with any tokenizer that has its control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from phikit.chat.templates import PHI4, TEMPLATES, Template
from phikit.chat.tokenizer import Tokenizer
from phikit.errors import PhikitError, did_you_mean

Message = Mapping[str, str]


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation; `trained[i]` says whether the model learns to say `ids[i]`."""

    ids: list[int]
    trained: list[bool]


@dataclass
class _Writer:
    """Token ids in the making.

    Plain text that stands together is tokenized together, as it is when a conversation is
    tokenized whole; but what is trained on begins a token of its own, because that is where a
    completion begins.
    """

    tokenizer: Tokenizer
    ids: list[int] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    _text: str = ""
    _train: bool = False
    _eat_space: bool = False

    def add(self, pieces: Sequence[int | str], train: bool = False) -> None:
        """Writes control ids and plain text."""
        if train != self._train:
            self._flush()
            self._train = train
        for piece in pieces:
            if isinstance(piece, str):
                self._text += piece
            else:
                self._flush()
                self.ids.append(piece)
                self.trained.append(train)
                self._eat_space = piece in self.tokenizer.eats_space

    def done(self) -> Rendered:
        self._flush()
        return Rendered(self.ids, self.trained)

    def _flush(self) -> None:
        text = self.tokenizer.strip_left(self._text) if self._eat_space else self._text
        self._text = ""
        if text:
            new = self.tokenizer.encode(text)
            self.ids += new
            self.trained += [self._train] * len(new)
            self._eat_space = False


class ChatFormat:
    """A template bound to a tokenizer.

    Attributes:
        stop_ids: the tokens that end a completion, the end of the turn first.
        end_id, document_end_id, pad_id: single control tokens, by what they do.
        media_ids: kind → the token that stands in the places of what is seen or heard.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.end_id = tokenizer.id_of(template.end_token)
        self.document_end_id = tokenizer.id_of(template.document_end)
        pad = tokenizer.config.get("pad_token")  # older files hold more than its name here
        pad = pad if isinstance(pad, str) else template.pad_token
        self.pad_id = tokenizer.special.get(pad, self.document_end_id)
        self.stop_ids: tuple[int, ...] = (self.end_id, self.document_end_id)
        self._inner = tuple(t for t in template.inner if t in tokenizer.special)
        self._headers = {
            r: self._frame(template.header.replace("{role}", r)) for r in template.roles
        }
        self._after_end = self._frame(template.footer.removeprefix(template.end_token))
        self._tools = [self._frame(token) for token in template.tools or ()]
        self._system = tokenizer.split_control(template.system, self._inner)
        self._unprompted_end = self._frame(template.unprompted_end)
        self.media_ids = {kind: tokenizer.id_of(token) for kind, token in template.media}
        self._modes = {
            mode: tokenizer.special[token]
            for mode, tokens in template.modes
            for token in tokens
            if token in tokenizer.special
        }

    @classmethod
    def phi4(cls, tokenizer: Tokenizer) -> ChatFormat:
        """`<|im_start|>{role}<|im_sep|>{content}<|im_end|>` for each message."""
        return cls(PHI4, tokenizer)

    def render(
        self,
        messages: Sequence[Message],
        generation_prompt: bool = False,
        media: Mapping[str, int] | None = None,
        mode: str | None = None,
    ) -> Rendered:
        """The ids of a conversation, and with `generation_prompt` the start of an answer.

        Args:
            messages: each has a `role` and its `content`; a system message may have `tools`,
                JSON text, where the template has a place for them.
            media: placeholder, such as `<|image_1|>`, → the number of tokens that stand for it.
                Each is in exactly one message. A placeholder that is not named here is text.
            mode: makes the answer begin in one of the template's `modes`; only with
                `generation_prompt`.

        Raises:
            PhikitError: a message has an unknown role, no content, or tools that the template has
                no place for; a placeholder is missing; there is no such mode. Names the message's
                number.
        """
        writer = _Writer(self.tokenizer)
        places = _Places(self.media_ids, media or {})
        for number, message in enumerate(messages, 1):
            self._check(message, number)
        rest = self._write_system(writer, messages, places)
        for message in rest:
            own = message["role"] == "assistant"
            writer.add(self._headers[message["role"]])
            if own:
                writer.add(self.tokenizer.split_control(message["content"], self._inner), True)
            else:
                self._write_content(writer, message, places)
            writer.add([self.end_id], own)
            writer.add(self._after_end)
        if generation_prompt:
            writer.add(self._headers["assistant"])
            writer.add(self._mode(mode))
        else:
            writer.add(self._unprompted_end)
        places.check()
        return writer.done()

    def opening(self, role: str) -> tuple[int, ...]:
        """The ids before what a first message of this role says: what follows is such a message.

        Raises:
            PhikitError: an unknown role.
        """
        first = {"role": role, "content": ""}
        self._check(first, 1)
        writer = _Writer(self.tokenizer)
        self._write_system(writer, [first], _Places(self.media_ids, {}))
        writer.add(self._headers[role])
        return tuple(writer.done().ids)

    def text(self, completion_ids: Sequence[int]) -> str:
        """The answer that a completion holds: up to its end token, `<think>` kept."""
        ids = list(completion_ids)
        end = next((n for n, i in enumerate(ids) if i in self.stop_ids), len(ids))
        return self.tokenizer.decode(ids[:end])

    def tokenizer_config(self) -> dict[str, Any]:
        """What `tokenizer_config.json` must say for transformers to do the same."""
        token_of = {i: token for token, i in self.tokenizer.special.items()}
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self.template.document_end,
            "eos_token": self.template.end_token,
            "pad_token": token_of[self.pad_id],
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "chat_template": self.template.jinja(),
        }

    def _mode(self, mode: str | None) -> list[int | str]:
        if mode is None:
            return []
        if mode not in self._modes:
            raise PhikitError(
                f"the format {self.template.name} has no mode {mode!r} of answering",
                f"it has {', '.join(self._modes)}" if self._modes else "leave it out",
            )
        return [self._modes[mode]]

    def _frame(self, text: str) -> list[int | str]:
        return self.tokenizer.split_control(text, self.template.control())

    def _write_system(
        self, writer: _Writer, messages: Sequence[Message], places: _Places
    ) -> Sequence[Message]:
        """Writes the template's own system message; returns the messages still to be written."""
        rule = self.template.system_rule
        systems = [m for m in messages if m["role"] == "system"]
        own_first = bool(messages) and messages[0]["role"] == "system"
        if not self.template.system or (rule == "instead" and own_first):
            return messages
        writer.add([*self._headers["system"], *self._system])
        for message in systems if rule == "appended" else ():
            writer.add([" "])
            self._write_content(writer, message, places)
        writer.add([self.end_id, *self._after_end])
        return messages if rule == "instead" else [m for m in messages if m["role"] != "system"]

    def _write_content(self, writer: _Writer, message: Message, places: _Places) -> None:
        writer.add(places.fill(message["content"]))
        if message.get("tools") is not None:
            before, after = self._tools
            writer.add([*before, message["tools"], *after])

    def _check(self, message: Message, number: int) -> None:
        role = message.get("role", "")
        if role not in self._headers:
            raise PhikitError(
                f"message {number} has the role {role!r}", did_you_mean(role, self._headers)
            )
        if not isinstance(message.get("content"), str):
            raise PhikitError(f"message {number} ({role}) has no text in its content")
        if message.get("tools") is None:
            return
        if not self._tools or role != "system":
            raise PhikitError(
                f"message {number} ({role}) has tools",
                "give them in the system message"
                if self._tools
                else f"the format {self.template.name} has no place for tools; phi-4-mini's has",
            )
        if not isinstance(message["tools"], str):
            raise PhikitError(
                f"message {number} ({role}) has tools that are no text", "give them as JSON text"
            )


class _Places:
    """The placeholders of one conversation, each of which is to be found once."""

    def __init__(self, known: Mapping[str, int], wanted: Mapping[str, int]) -> None:
        self.runs: dict[str, list[int]] = {}
        for place, count in wanted.items():
            kind = re.fullmatch(r"<\|([a-z]+)_[1-9][0-9]*\|>", place)
            if not kind or kind[1] not in known:
                raise PhikitError(
                    f"{place!r} is no placeholder of this chat format",
                    "it has " + (", ".join(f"<|{k}_1|>, ..." for k in known) or "none"),
                )
            self.runs[place] = [known[kind[1]]] * count
        self.found: list[str] = []

    def fill(self, content: str) -> list[int | str]:
        """The content, with the placeholders' tokens in their places."""
        if not self.runs:
            return [content]
        pieces: list[int | str] = []
        for n, piece in enumerate(re.split(f"({'|'.join(map(re.escape, self.runs))})", content)):
            if n % 2:
                self.found.append(piece)
                pieces += self.runs[piece]
            else:
                pieces.append(piece)
        return pieces

    def check(self) -> None:
        for place in self.runs:
            if (times := self.found.count(place)) != 1:
                raise PhikitError(
                    f"{place} stands {times} times in the messages", "it must stand there once"
                )


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """The format that a tokenizer is for.

    It has all the control tokens of its format. Formats that differ only in the system message
    they bring along are told apart by the template in `tokenizer_config.json`.

    Raises:
        PhikitError: no format's control tokens are all there.
    """
    written = tokenizer.config.get("chat_template")
    for template in TEMPLATES:
        has_tokens = all(token in tokenizer.special for token in template.control())
        # the first line tells them apart, however a file writes line breaks
        begins = template.system.partition("\n")[0]
        if has_tokens and begins in str(written):
            return ChatFormat(template, tokenizer)
    needs = "; ".join(f"{t.name}: {' '.join(t.control())}" for t in TEMPLATES if not t.system)
    raise PhikitError(
        "the tokenizer has no chat format's control tokens; it has "
        + (" ".join(tokenizer.special) or "none"),
        f"a chat format needs {needs}",
    )
