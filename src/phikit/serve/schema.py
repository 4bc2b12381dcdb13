"""What requests may hold, as the OpenAPI document says it; anything else is refused by name."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Id = Annotated[int, Field(ge=0, lt=2**31)]
_Source = Annotated[str, Field(min_length=1, max_length=2**18)]
_Text = Annotated[str, Field(min_length=1, max_length=4096)]


class _Body(BaseModel):
    """A body: unknown names and wrong types are refused, and null is as good as left out."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


def _check_text(data: Any) -> None:
    if isinstance(data, str):
        try:
            data.encode()
        except UnicodeEncodeError:
            raise ValueError(
                "a text holds half of a surrogate pair, which is no character"
            ) from None
    elif isinstance(data, list):
        for item in data:
            _check_text(item)
    elif isinstance(data, dict):
        for name, value in data.items():
            _check_text(name)
            _check_text(value)


class _Whole(_Body):
    """A body as it comes; all text in it must be text."""

    @model_validator(mode="before")
    @classmethod
    def _is_text(cls, data: Any) -> Any:
        _check_text(data)
        return data


class TextPart(_Body):
    type: Literal["text"]
    text: str


class RefusalPart(_Body):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


class FunctionCall(_Body):
    name: str
    arguments: str = "{}"


class Call(_Body):
    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


# a message has one of them
_SAYINGS = ("content", "reasoning_content", "tool_calls", "refusal")


class ChatMessage(_Body):
    """One message; `developer` is another name for `system`. What chat formats have no place for is
    passed over: `name`, `tool_call_id`, `annotations`, and earlier thoughts."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [name]} for name in _SAYINGS]}
    )

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart | RefusalPart] = ""
    refusal: str = ""
    reasoning_content: str = ""
    annotations: list[dict[str, Any]] = []
    name: str = ""
    tool_calls: list[Call] = []
    tool_call_id: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        empty = set() if self.tool_calls else {"tool_calls"}
        if (self.model_fields_set - empty).isdisjoint(_SAYINGS):
            raise ValueError(f"a message of the role {self.role} has no content")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content or self.refusal
        return "".join(part.text for part in self.content)


class Function(_Body):
    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: bool = False

    @model_validator(mode="after")
    def _is_of_an_object(self) -> Self:
        kind = self.parameters.get("type", "object")
        if kind != "object":
            raise ValueError(f"the type of parameters is {kind!r}; a function's are an 'object'")
        return self


class Tool(_Body):
    type: Literal["function"] = "function"
    function: Function


class StreamOptions(_Body):
    """`include_obfuscation` makes no difference: chunks are never padded."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Body):
    """`strict` makes no difference: answers always keep to the schema."""

    name: str = ""
    description: str = ""
    schema_: dict[str, Any] | bool = Field({}, alias="schema")
    strict: bool = True


class ResponseFormat(_Body):
    """The form of the answer; `regex` and `grammar` (Lark syntax) go beyond OpenAI's."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    regex: _Source | None = None
    grammar: _Source | None = None


class NamedFunction(_Body):
    name: str


class ToolChoice(_Body):
    type: Literal["function"] = "function"
    function: NamedFunction


class _Common(_Whole):
    """What chat and completions have in common.

    Beyond OpenAI's: top_k, min_p; stop_token_ids (and ignore_eos, which leaves the model's own end
    tokens out); first_sample, the number of the first of the n samples' random streams;
    return_token_ids, which adds to every choice `prompt_token_ids`, `token_ids`, and their
    log-probabilities as `sampling_logprobs` and `raw_logprobs`; response_format for completions.
    `user` makes no difference.
    """

    model: str
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=2**20)
    seed: _Seed | None = None
    first_sample: int = Field(0, ge=0, lt=2**31)
    stop: _Text | Annotated[list[_Text], Field(max_length=16)] = []
    stop_token_ids: list[_Id] = Field([], max_length=64)
    ignore_eos: bool = False
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    stream: bool = False
    stream_options: StreamOptions | None = None
    return_token_ids: bool = False
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field({}, max_length=300)
    response_format: ResponseFormat | None = None
    user: str = ""

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatBody(_Common):
    """`metadata`, `service_tier`, `safety_identifier` and `prompt_cache_key` make no difference."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    tools: list[Tool] = Field([], max_length=128)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"
    parallel_tool_calls: bool = True
    metadata: dict[str, Any] = {}
    modalities: list[Literal["text"]] = []
    service_tier: Literal["auto", "default"] = "auto"
    safety_identifier: str = ""
    prompt_cache_key: str = ""
    store: bool = False


class CompletionBody(_Common):
    prompt: str | list[_Id] | list[str] | list[list[_Id]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    suffix: str = ""
    best_of: int | None = None


#: what OpenAI's interface has and this server has not, and what to do instead
UNSUPPORTED = {
    "audio": "answers are text",
    "function_call": "use tool_choice",
    "functions": "use tools",
    "prediction": "leave it out; phikit serve --speculate lookup guesses what the prompt says",
    "prompt_cache_retention": "leave it out; prompts are cached while there is room",
    "reasoning_effort": "leave it out; a model thinks as its chat format says",
    "verbosity": "leave it out; ask for short or long answers in a message",
    "web_search_options": "leave it out",
}


class TokenizeBody(_Whole):
    """Text, or a conversation as `/v1/chat/completions` would give it to the model."""

    model: str
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1, max_length=4096)
    tools: list[Tool] = Field([], max_length=128)


class DetokenizeBody(_Whole):
    model: str
    tokens: list[_Id] = Field(max_length=2**20)


class Problem(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    error: Problem
