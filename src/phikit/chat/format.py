"""Chat messages to token ids, with the mask of what is trained on.

A `Template` is data: the strings around a message, which of their parts are control tokens, which
roles there are. `ChatFormat` renders any template with any tokenizer that has its control tokens,
and `jinja` writes the same template for transformers and inference servers. Another member of the
family is another `Template`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phikit.chat.tokenizer import Tokenizer
from phikit.errors import PhikitError, did_you_mean

Message = Mapping[str, str]

THINK = ("<think>", "</think>")
NANO_SPECIAL = (
    "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|im_start|>",
    "<|im_end|>", "<|im_sep|>", "<|endofprompt|>", *THINK, "<|pad|>",
)  # fmt: skip


@dataclass(frozen=True)
class Template:
    """How a member of the family writes a conversation.

    Attributes:
        header: comes before a message's content; `{role}` stands for its role.
        footer: comes after it. After an assistant's content it is trained on.
        roles: the roles there may be.
        end_token: ends the assistant's turn. `document_end` ends a text; both end a completion.
        inner: control tokens that may stand inside an assistant's content, where the tokenizer
            has them.
        pad_token: fills up a batch.
        system: replaces every system message and always comes first, when it is not empty.
        unprompted_end: ends a rendering without generation prompt, when it is not empty.
    """

    name: str
    header: str
    footer: str
    end_token: str
    document_end: str = "<|endoftext|>"
    roles: tuple[str, ...] = ("system", "user", "assistant")
    inner: tuple[str, ...] = THINK
    pad_token: str = "<|pad|>"
    system: str = ""
    unprompted_end: str = ""

    def control(self) -> tuple[str, ...]:
        """The control tokens that the template itself is made of."""
        frame = "".join(self.header.replace("{role}", role) for role in self.roles)
        frame += self.footer + self.end_token + self.document_end + self.unprompted_end
        return tuple(dict.fromkeys(re.findall(r"<\|[^|<>]+\|>", frame)))

    def jinja(self) -> str:
        """The template for transformers: the same text, from which it makes the same ids.

        (There the whole text is tokenized at once, so unlike here a message that spells a control
        token does forge it.)
        """
        before, after = (_quote(part) for part in self.header.split("{role}"))
        lines = []
        loop = "messages"
        if self.system:
            head = _quote(self.header.replace("{role}", "system") + self.system + self.footer)
            lines.append(f"{{{{ {head} }}}}")
            loop = "messages if message['role'] != 'system'"
        lines += [
            f"{{% for message in {loop} %}}",
            f"{{{{ {before} + message['role'] + {after} + message['content'] + "
            f"{_quote(self.footer)} }}}}",
            "{% endfor %}",
            "{% if add_generation_prompt %}",
            f"{{{{ {_quote(self.header.replace('{role}', 'assistant'))} }}}}",
        ]
        if self.unprompted_end:
            lines += ["{% else %}", f"{{{{ {_quote(self.unprompted_end)} }}}}"]
        return "".join([*lines, "{% endif %}"])


# Technical report and the published, fixed template: no newlines, no token at the beginning.
PHI4 = Template(
    name="phi4",
    header="<|im_start|>{role}<|im_sep|>",
    footer="<|im_end|>",
    end_token="<|im_end|>",
)
TEMPLATES = (PHI4,)


@dataclass(frozen=True)
class Rendered:
    """Token ids of a conversation; `trained[i]` says whether the model learns to say `ids[i]`."""

    ids: list[int]
    trained: list[bool]


class ChatFormat:
    """A template bound to a tokenizer.

    Attributes:
        stop_ids: the tokens that end a completion, the end of the turn first.
        end_id, document_end_id, pad_id: single control tokens, by what they do.
    """

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self.template = template
        self.tokenizer = tokenizer
        self.end_id = tokenizer.id_of(template.end_token)
        self.document_end_id = tokenizer.id_of(template.document_end)
        self.pad_id = tokenizer.special.get(template.pad_token, self.document_end_id)
        self.stop_ids: tuple[int, ...] = (self.end_id, self.document_end_id)
        self._inner = tuple(t for t in template.inner if t in tokenizer.special)
        self._headers = {
            r: self._frame(template.header.replace("{role}", r)) for r in template.roles
        }
        self._footer = self._frame(template.footer)

    @classmethod
    def phi4(cls, tokenizer: Tokenizer) -> ChatFormat:
        """`<|im_start|>{role}<|im_sep|>{content}<|im_end|>` for each message."""
        return cls(PHI4, tokenizer)

    def render(self, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered:
        """The ids of a conversation, and with `generation_prompt` the start of an answer.

        Raises:
            PhikitError: a message has an unknown role or no content; names its number.
        """
        if fixed := self.template.system:
            rest = [m for m in messages if m.get("role") != "system"]
            messages = [{"role": "system", "content": fixed}, *rest]
        ids: list[int] = []
        trained: list[bool] = []

        def add(new: list[int], train: bool = False) -> None:
            ids.extend(new)
            trained.extend([train] * len(new))

        for number, message in enumerate(messages):
            role, content = self._checked(message, number)
            own = role == "assistant"
            add(self._headers[role])
            add(self.tokenizer.encode_control(content, self._inner if own else ()), own)
            add(self._footer, own)
        if generation_prompt:
            add(self._headers["assistant"])
        elif self.template.unprompted_end:
            add(self._frame(self.template.unprompted_end))
        return Rendered(ids, trained)

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

    def _frame(self, text: str) -> list[int]:
        return self.tokenizer.encode_control(text, self.template.control())

    def _checked(self, message: Message, number: int) -> tuple[str, str]:
        role, content = message.get("role", ""), message.get("content")
        if role not in self._headers:
            raise PhikitError(
                f"message {number + 1} has the role {role!r}", did_you_mean(role, self._headers)
            )
        if not isinstance(content, str):
            raise PhikitError(f"message {number + 1} ({role}) has no text in its content")
        return role, content


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """The format whose control tokens the tokenizer has.

    Raises:
        PhikitError: no format's are all there.
    """
    for template in TEMPLATES:
        if all(token in tokenizer.special for token in template.control()):
            return ChatFormat(template, tokenizer)
    needs = "; ".join(f"{t.name}: {' '.join(t.control())}" for t in TEMPLATES)
    raise PhikitError(
        "the tokenizer has no chat format's control tokens; it has "
        + (" ".join(tokenizer.special) or "none"),
        f"a chat format needs {needs}",
    )


def _quote(text: str) -> str:
    """A string literal of Jinja."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
