"""What may be said where calls are allowed, token by token."""

from types import SimpleNamespace

import numpy as np
import pytest
from serve_fixtures import SPECIAL, TEXT

from phikit.chat.tokenizer import train_bpe
from phikit.engine.base import Sampling
from phikit.engine.texts import Texts
from phikit.serve.forms import constraint
from phikit.serve.schema import ChatBody
from phikit.serve.served import Refused

TOKENIZER = train_bpe(TEXT, 330, SPECIAL)
BARE = train_bpe(TEXT, 330, [token for token in SPECIAL if "think" not in token])
SCHEMA = {"type": "object", "properties": {"town": {"enum": ["Ulm"]}}, "required": ["town"]}


def told(tokenizer, **settings):
    function = {"name": "weather", "strict": True, "parameters": SCHEMA}
    body = ChatBody(
        model="tiny", messages=[{"role": "user", "content": "?"}],
        tools=[{"type": "function", "function": function}], **settings,
    )  # fmt: skip
    return constraint(SimpleNamespace(name="tiny", tokenizer=tokenizer), body)


def follow(text, tokenizer=TOKENIZER, **settings):
    """What of a text may not be said; None when it is a whole answer, "" when more must come."""
    texts = Texts(tokenizer, tokenizer.vocab_size)
    end = tokenizer.special["<|end|>"]
    watch = texts.watch(Sampling(constraint=told(tokenizer, **settings), stop_ids=(end,)))
    row = SimpleNamespace(watch=watch)

    def may(token):
        return bool(np.unpackbits(watch.bits.view(np.uint8), bitorder="little")[token])

    pieces = tokenizer.split_control(text, tuple(tokenizer.special))
    ids = [i for p in pieces for i in ([p] if isinstance(p, int) else tokenizer.encode(p))]
    for at, token in enumerate(ids):
        if not may(token):
            return tokenizer.decode(ids[at:])
        if texts.follow([row], np.array([token]))[0]:
            assert not watch.problem
            return tokenizer.decode(ids[at + 1 :]) or None
    return None if may(end) else ""


ULM = '[{"name": "weather", "arguments": {"town": "Ulm"}}]'


@pytest.mark.parametrize("tokenizer", [TOKENIZER, BARE], ids=["think tokens", "think as text"])
@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", None),
        ("the cat functools to € 🙂 [them] <|", None),
        (f"I ask. <|tool_call|>{ULM}<|/tool_call|>", None),
        (f"I ask. functools{ULM}", None),
        (f"functools {ULM} and so", " and so"),
        ("functools [", ""),
        ("functools functools []", "]"),
        ('<|tool_call|>[{"name": "wet', "t"),
        ('functools[{"name": "weather", "arguments": {"town": "Bonn', "Bonn"),
        (f"<|tool_call|>{ULM[:-1]}, {ULM[1:]}<|/tool_call|>", None),
        ("<think>functools[ are", None),
        (f" <think>functools[ are</think> nice: functools{ULM}", None),
        ("<think>functools[ are</think> nice: functools[{x", "x"),
        ("<think>hm</think><|tool_call|>x", "x"),
    ],
)
def test_free_text_until_a_call_begins(tokenizer, text, rest):
    assert follow(text, tokenizer) == rest


def test_a_call_spelled_in_letters_is_none():
    spelled = TOKENIZER.encode("<|tool_call|>")
    assert len(spelled) > 5
    texts = Texts(TOKENIZER, TOKENIZER.vocab_size)
    watch = texts.watch(Sampling(constraint=told(TOKENIZER)))
    row = SimpleNamespace(watch=watch)
    for token in spelled[:-1]:
        texts.follow([row], np.array([token]))
    bits = np.unpackbits(watch.bits.view(np.uint8), bitorder="little")
    assert not bits[spelled[-1]] and bits[TOKENIZER.encode("x")[0]]


def test_one_call_where_several_are_not_wanted():
    two = f"<|tool_call|>{ULM[:-1]}, {ULM[1:]}<|/tool_call|>"
    assert follow(two, parallel_tool_calls=False).startswith(", ")


def test_an_answer_or_a_call():
    form = {"type": "json_object"}
    assert follow('{"cat": 1}', response_format=form) is None
    assert follow(f"<|tool_call|>{ULM}<|/tool_call|>", response_format=form) is None
    assert follow("the cat", response_format=form)
    with pytest.raises(Refused, match="strict cannot be kept to"):
        told(TOKENIZER, response_format={"type": "regex", "regex": "a"})
