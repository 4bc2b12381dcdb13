"""Dataset types as files: what to ask a teacher, step by step, and what to make of its replies.

A type is one YAML file; its keys are the attributes of the classes below. Its prompts are Jinja
templates, run in a sandbox, that see `seed` (the text it starts from), `tests` (a function's
recorded behaviour, as the "code" verifier takes it), what was drawn from `vary`, and the replies of
earlier steps by their names (`draft.question`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError

from phikit.errors import BadRecord, PhikitError, did_you_mean
from phikit.files import explain_os_errors
from phikit.stage import Config
from phikit.synth.schema import check_schema
from phikit.verify.base import Problem
from phikit.verify.problems import check_answer, check_verifier

SHIPPED = Path(__file__).parent / "declared"
_SHORT = ("string", "integer", "number", "boolean")  # a field's type in one word
# verifiers that compare with an answer
_WITH_GOLD = ("math", "number", "choice", "exact", "code")
# what a template may name: of a step's structured reply its fields, of all else None
Known = dict[str, set[str] | None]
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False
)


class Step(Config):
    """One call. `role` is the system message. `reply` states the fields of a structured reply: a
    JSON schema each, or one word ("string", "integer", "number", "boolean", "strings")."""

    name: str = Field(pattern=r"^[a-z][a-z_]*$")
    role: str = ""
    prompt: str
    reply: dict[str, str | dict[str, Any]] = Field(default_factory=dict)
    temperature: float = Field(default=0.7, ge=0, le=2)
    max_tokens: int = Field(default=1024, ge=1)

    @property
    def schema_of_reply(self) -> dict[str, Any] | None:
        """The JSON schema that the step's fields make; None where the reply is plain text."""
        if not self.reply:
            return None
        properties = {name: _field(kind) for name, kind in self.reply.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }


def _field(kind: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind, dict):
        return kind
    if kind == "strings":
        return {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1}
    return {"type": kind, "minLength": 1} if kind == "string" else {"type": kind}


class Turn(Config):
    """One message of the sample; `content` is a template."""

    role: Literal["system", "user", "assistant"]
    content: str


class Result(Config):
    """The sample's fields, as templates. `turns` names a reply's list of strings that are the
    messages of a conversation, the user's first."""

    messages: tuple[Turn, ...] = ()
    turns: str = ""
    text: str = ""
    answer: str = ""


class Validators(Config):
    """What a sample must pass.

    Attributes:
        verifier: judges the last assistant message against `answer`.
        confirm: a template: an independent answer that the same verifier must pass as well.
        require: templates that must come out as "True".
        min_words, max_words: of the assistant's part, or of the text.
        grounded: the least share of the response's word trigrams that occur in the seed.
    """

    verifier: str = ""
    confirm: str = ""
    require: tuple[str, ...] = ()
    min_words: int = Field(default=1, ge=0)
    max_words: int = Field(default=4000, ge=1)
    grounded: float = Field(default=0, ge=0, le=1)


class DeclaredType(Config):
    """A dataset type. `source` is its class in a mixture, `share` its weight among the types;
    `vary` gives lists from each of which one entry is drawn for a sample."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    purpose: str = Field(min_length=10)
    domain: str
    source: str = "synthetic"
    seed: Literal["none", "document", "code", "function", "problem"] = "none"
    share: float = Field(default=1, gt=0)
    vary: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    steps: tuple[Step, ...] = Field(min_length=1)
    result: Result
    validators: Validators = Validators()


@cache
def compiled(source: str) -> Template:
    """A template, compiled once, in Jinja's sandbox."""
    return _ENVIRONMENT.from_string(source)


def render(source: str, values: Mapping[str, Any]) -> str:
    """
    Raises:
        BadRecord: the template fails on these values (a missing field, a forbidden operation).
    """
    try:
        return compiled(source).render(values).strip()
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as e:
        raise BadRecord(f"the template {source[:60]!r} fails: {e}") from e


def read_type(path: Path) -> DeclaredType:
    """A type from its file, wholly checked.

    Raises:
        PhikitError: names file, line and key, and the nearest right key.
    """
    with explain_os_errors(path, "reading"):
        raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
        node, data = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except UnicodeDecodeError as e:
        line = raw[: e.start].count(b"\n") + 1
        raise PhikitError(f"{path}:{line}: not UTF-8 ({e.reason})", "save it as UTF-8") from e
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise PhikitError(f"{place}: not valid YAML: {e}") from e
    if not isinstance(data, dict):
        raise PhikitError(f"{path}: not a mapping", "it begins with the line `name: ...`")
    _check_keys(node, path)
    try:
        made = DeclaredType.model_validate(data)
    except ValidationError as e:
        # a misspelt key is also a missing one: say which was meant
        first = min(e.errors(), key=lambda error: error["type"] != "extra_forbidden")
        place = f"{path}:{_line(node, first['loc'])}: {'.'.join(map(str, first['loc']))}"
        if first["type"] == "extra_forbidden":
            known = _keys_at(first["loc"][:-1])
            hint = did_you_mean(str(first["loc"][-1]), known)
            raise PhikitError(f"{place}: no such key", hint) from e
        given = first["input"]
        shown = f" (it is {given!r})" if isinstance(given, str | int | float) else ""
        raise PhikitError(f"{place}: {first['msg']}{shown}") from e
    _check(made, path, node)
    return made


def _check_keys(root: Any, path: Path) -> None:
    """That no mapping has a key twice: YAML would take the last and say nothing."""
    left, met = [root], set()  # an alias is the same node again
    while left:
        node = left.pop()
        if id(node) in met:
            continue
        met.add(id(node))
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if key.value in seen:
                    at = f"{path}:{key.start_mark.line + 1}"
                    raise PhikitError(f"{at}: the key {key.value!r} is there twice")
                seen.add(key.value)
                left.append(value)
        elif isinstance(node, yaml.SequenceNode):
            left += node.value


def _keys_at(loc: tuple[int | str, ...]) -> Iterable[str]:
    names = [part for part in loc if isinstance(part, str)]
    inner: dict[str, type[Config]] = {
        "steps": Step,
        "result": Result,
        "validators": Validators,
        "messages": Turn,
    }
    shown: type[Config] = inner[names[-1]] if names else DeclaredType
    return shown.model_fields


def _line(node: Any, loc: Iterable[Any]) -> int:
    """The line of a key, or of the innermost key on the way to it that is there."""
    line = node.start_mark.line
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
            if found is None:
                break
            line, node = found[0].start_mark.line, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line
    return int(line) + 1


def _check(made: DeclaredType, path: Path, node: Any) -> None:
    """That templates parse and use only names and fields that exist by then."""

    def at(*loc: Any) -> str:
        return f"{path}:{_line(node, loc)}"

    known: Known = {"seed": None, "tests": None}
    for name, entries in made.vary.items():
        _check_new(name, known, at("vary", name))
        if not entries:
            raise PhikitError(f"{at('vary', name)}: vary.{name}: nothing to draw from")
        known[name] = None
    for i, step in enumerate(made.steps):
        for key in ("role", "prompt"):
            _check_template(getattr(step, key), known, at("steps", i, key))
        for name, kind in step.reply.items():
            where = at("steps", i, "reply", name)
            if not name.isidentifier():
                raise PhikitError(f"{where}: reply: {name!r} is no name for a field")
            if isinstance(kind, str) and kind not in (*_SHORT, "strings"):
                hint = did_you_mean(kind, (*_SHORT, "strings"))
                raise PhikitError(f"{where}: reply.{name}: no type {kind!r}", hint)
            check_schema(_field(kind), f"{where}: reply.{name}")
        _check_new(step.name, known, at("steps", i, "name"))
        known[step.name] = set(step.reply) or None
    _check_result(made, known, at)
    _check_validators(made, known, at)


def _check_validators(made: DeclaredType, known: Known, at: Callable[..., str]) -> None:
    rules = made.validators
    for key, source in (("confirm", rules.confirm), *(("require", r) for r in rules.require)):
        _check_template(source, known, at("validators", key))
    where = at("validators", "verifier")
    if rules.verifier:
        check_verifier(rules.verifier, where)
    if rules.verifier in _WITH_GOLD and not made.result.answer:
        raise PhikitError(f"{where}: the verifier {rules.verifier!r} needs result.answer")
    if rules.confirm and not rules.verifier:
        raise PhikitError(f"{at('validators', 'confirm')}: confirm needs a verifier")
    if rules.min_words > rules.max_words:
        raise PhikitError(
            f"{at('validators', 'min_words')}: min_words {rules.min_words} is above max_words "
            f"{rules.max_words}"
        )
    if rules.grounded and made.seed == "none":
        raise PhikitError(f"{at('validators', 'grounded')}: grounded needs a seed")
    _check_constants(made, at)


def _check_constants(made: DeclaredType, at: Callable[..., str]) -> None:
    """That a demand which is the same for every sample is one that a sample could meet: else it
    would be found out sample by sample, each paid for."""
    verifier, where = made.validators.verifier, f"{at('result', 'answer')}: result.answer"
    answer = _constant(made.result.answer, where)
    if verifier and answer is not None:
        check_answer(Problem(prompt="", answer=answer, verifier=verifier), where)
    for i, source in enumerate(made.validators.require):
        where = f"{at('validators', 'require', i)}: validators.require"
        if _constant(source, where) not in (None, "True"):
            hint = "it names no reply and nothing that is drawn"
            if "{{" not in source:
                hint = f"write it as a template: '{{{{ {source} }}}}'"
            raise PhikitError(f"{where}: {source!r} is True for no sample", hint)


def _constant(source: str, where: str) -> str | None:
    """What a template comes to, where that is the same for every sample."""
    if meta.find_undeclared_variables(_ENVIRONMENT.parse(source)):
        return None
    try:
        return render(source, {})
    except BadRecord as e:
        raise PhikitError(f"{where}: {e.message}") from e


def _check_result(made: DeclaredType, known: Known, at: Callable[..., str]) -> None:
    result = made.result
    if sum(map(bool, (result.messages, result.turns, result.text))) != 1:
        raise PhikitError(f"{at('result')}: result needs exactly one of messages, turns and text")
    if result.messages and result.messages[-1].role != "assistant":
        place = at("result", "messages", len(result.messages) - 1)
        raise PhikitError(f"{place}: the last message is the {result.messages[-1].role}'s")
    for i, turn in enumerate(result.messages):
        _check_template(turn.content, known, at("result", "messages", i, "content"))
    for key in ("text", "answer"):
        _check_template(getattr(result, key), known, at("result", key))
    if result.turns:
        step, _, name = result.turns.partition(".")
        kinds = {s.name: s.reply for s in made.steps}
        if name not in kinds.get(step, {}):
            there = [f"{s}.{field}" for s, reply in kinds.items() for field in reply]
            raise PhikitError(
                f"{at('result', 'turns')}: no reply has {result.turns!r}",
                did_you_mean(result.turns, there),
            )
        if _field(kinds[step][name]).get("type") != "array":
            raise PhikitError(f"{at('result', 'turns')}: {result.turns} is no list of strings")


def _check_new(name: str, known: Known, at: str) -> None:
    if name in known:
        raise PhikitError(f"{at}: the name {name!r} is taken", "choose another")


def _check_template(source: str, known: Known, at: str) -> None:
    try:
        parsed = _ENVIRONMENT.parse(source)
        _ENVIRONMENT.compile(source)  # knows filters and tests
    except TemplateSyntaxError as e:
        raise PhikitError(f"{at}: in a template: {e.message}") from e
    for name in sorted(meta.find_undeclared_variables(parsed) - known.keys()):
        raise PhikitError(f"{at}: {name!r} is not known here", did_you_mean(name, known))
    for used in parsed.find_all(nodes.Getattr):
        name = used.node.name if isinstance(used.node, nodes.Name) else ""
        fields = known.get(name)
        if fields and used.attr not in fields:
            raise PhikitError(
                f"{at}: the reply {name!r} has no field {used.attr!r}",
                did_you_mean(used.attr, fields),
            )


def read_types(folder: Path | None = None) -> dict[str, DeclaredType]:
    """The shipped types, and those of a folder, which may replace shipped ones.

    Raises:
        PhikitError: the folder has no type, or a file is wrong.
    """
    paths = sorted(SHIPPED.glob("*.yaml"))
    if folder is not None:
        own = sorted(folder.glob("*.yaml"))
        if not own:
            raise PhikitError(f"{folder}: no dataset type (*.yaml) is here")
        paths += own
    types = {}
    for path in paths:
        made = read_type(path)
        if made.name != path.stem:
            raise PhikitError(f"{path}: the type is named {made.name!r}", "name both alike")
        types[made.name] = made
    return types


def find_type(name: str, types: Mapping[str, DeclaredType]) -> DeclaredType:
    """
    Raises:
        PhikitError: there is none of that name; names the nearest.
    """
    if name not in types:
        hint = did_you_mean(name, types, "phikit synth list")
        raise PhikitError(f"no dataset type is named {name!r}", hint)
    return types[name]
