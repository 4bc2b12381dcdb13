"""The prompts of a file, and their token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phikit.chat.format import ChatFormat, chat_format
from phikit.chat.load import load_tokenizer
from phikit.errors import PhikitError
from phikit.verify.problems import json_lines

_FORMS = 'give {"prompt": "text"}, {"messages": [...]} or {"prompt_ids": [...]}'
# what the command sets for all prompts; other keys may be there, and are left alone
_OPTIONS = (
    "n", "seed", "temperature", "top_k", "top_p", "min_p", "max_tokens", "stop", "schema", "regex",
    "grammar",
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """A line of the file: `value` is text, messages or token ids, as `kind` says."""

    where: str
    kind: str
    value: Any
    adapter: str

    @contextmanager
    def named(self) -> Iterator[None]:
        """Has errors say which line they are of."""
        try:
            yield
        except PhikitError as error:
            raise PhikitError(f"{self.where}: {error.message}", error.hint) from None


def read(path: Path) -> list[Prompt]:
    """The prompts of a file of JSON lines, each with exactly one of the three forms.

    Raises:
        PhikitError: the file cannot be read, or a line is no prompt; names the line.
    """
    found = [_prompt(where, row) for where, row in json_lines(path, _FORMS, text="prompt")]
    if not found:
        raise PhikitError(f"{path} has no prompts", _FORMS)
    return found


def _prompt(where: str, value: Mapping[str, Any]) -> Prompt:
    given = [kind for kind, right in _RIGHT.items() if kind in value]
    if len(given) != 1:
        raise PhikitError(f"{where}: is no prompt", _FORMS)
    [kind] = given
    if not _RIGHT[kind](value[kind]):
        raise PhikitError(f"{where}: {kind} is {_SAYS[kind]}: {value[kind]!r:.80}", _FORMS)
    if set_here := [option for option in _OPTIONS if option in value]:
        option = f"--{set_here[0].replace('_', '-')}"
        raise PhikitError(
            f"{where}: sets {set_here[0]}, which is the same for all prompts", f"give {option}"
        )
    adapter = value.get("adapter", "")
    if not isinstance(adapter, str):
        raise PhikitError(f"{where}: adapter is no name: {adapter!r:.80}")
    return Prompt(where, kind, value[kind], adapter)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


_RIGHT = {
    "prompt": lambda v: isinstance(v, str),
    "messages": lambda v: isinstance(v, list) and bool(v) and all(map(_is_message, v)),
    "prompt_ids": lambda v: isinstance(v, list) and all(type(i) is int for i in v),
}
_SAYS = {
    "prompt": "no text",
    "messages": 'no list of {"role": "text", "content": "text"}',
    "prompt_ids": "no list of whole numbers",
}


def _ends(model: Path) -> tuple[int, ...]:
    """What ends a text, by a model's configuration; a tokenizer alone has none."""
    from phikit.models.architectures import read_config  # these take seconds to import
    from phikit.models.gguf import GGUF, config_of

    if model.is_file():
        return config_of(GGUF(model)).eos_ids
    found: tuple[int, ...] = ()
    if (model / "config.json").is_file():
        found = read_config(model).eos_ids
    return found


class Asker:
    """How a model is asked, and its answers are read.

    Args:
        model: a directory with its tokenizer, or a GGUF file.

    Attributes:
        ends: the tokens that end a completion.

    Raises:
        PhikitError: there is no tokenizer.
    """

    def __init__(self, model: Path) -> None:
        self.model, self.tokenizer = model, load_tokenizer(model)
        self.form: ChatFormat | None = None
        self.no_form = ""
        try:
            self.form = chat_format(self.tokenizer)
            self.ends = self.form.stop_ids
        except PhikitError as error:  # it only continues texts
            self.no_form = error.message
            self.ends = _ends(model)

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt's token ids.

        Raises:
            PhikitError: it has none, or the model's chat format has no place for it.
        """
        with prompt.named():
            found = tuple(self._ids(prompt))
            if not found:
                raise PhikitError("the prompt is empty")
        return found

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if prompt.kind == "prompt_ids":
            ids: list[int] = prompt.value
            return ids
        if prompt.kind == "prompt":
            return self.tokenizer.encode(prompt.value)
        if self.form is None:
            raise PhikitError(f"{self.model} cannot chat: {self.no_form}", "give prompt as text")
        return self.form.render(prompt.value, generation_prompt=True).ids

    def text(self, completion_ids: Sequence[int]) -> str:
        """A completion's text, without the token that ended it."""
        last = len(completion_ids) - 1
        kept = [i for at, i in enumerate(completion_ids) if at < last or i not in self.ends]
        return self.tokenizer.decode(kept)
