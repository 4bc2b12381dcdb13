"""Stop strings, reasoning and tool calls, however the text is cut into tokens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.chat.token_bytes import token_bytes
from phikit.chat.tokenizer import train_bpe
from phikit.engine.stops import before_stop, beginning
from phikit.serve.calls import CallStream
from phikit.serve.text import Characters, Parts

TOKENIZER = train_bpe(["abcab the cat 🙂 €"] * 3, 280, ["<|end|>"])


TABLE = token_bytes(TOKENIZER)


@given(st.text("ab€🙂"), st.lists(st.text("ab€🙂", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_text(text, stop):
    characters, shown = Characters(TABLE, stop), ""
    for token in TOKENIZER.encode(text):
        shown += characters.push([token])
        assert not any(word in shown for word in stop)
    assert shown + characters.finish() == before_stop(text, stop)


@given(st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=30), st.integers(1, 4))
def test_streamed_text_is_the_whole_text(ids, size):
    characters = Characters(TABLE)
    shown = "".join(characters.push(ids[i : i + size]) for i in range(0, len(ids), size))
    assert shown + characters.finish() == TOKENIZER.decode(ids)


def test_what_may_begin_a_word():
    assert beginning("xab", ["abc", "zz"]) == 2
    assert beginning("abc", ["abc"]) == 0
    assert beginning("", ["abc"]) == 0
    assert beginning("x<", ["<think>", "<|tool"]) == 1


def parts_of(text, tools, cuts):
    parts, out = Parts(tools), {}
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for name, piece in [p for t in pieces for p in parts.push(t)] + parts.finish():
        out[name] = out.get(name, "") + piece
    return out, parts.calls


CALL = '[{"name": "weather", "arguments": {"town": "Ulm"}}]'
CASES = [
    ("plain <b> text", False, {"content": "plain <b> text"}, []),
    ("<think>a < b</think>\n\nyes", False,
     {"reasoning_content": "a < b", "content": "yes"}, []),
    (" <think>cut off </thin", False, {"reasoning_content": "cut off </thin"}, []),
    ("say <think>no", False, {"content": "say <think>no"}, []),
    (f"<|tool_call|>{CALL}<|/tool_call|>", True, {}, ["weather"]),
    (f"I ask. functools{CALL}", True, {"content": "I ask. "}, ["weather"]),
    (f"<think>hm</think><|tool_call|>{CALL}", True, {"reasoning_content": "hm"}, ["weather"]),
    ("functools are nice", True, {"content": "functools are nice"}, []),
    ("<|tool_call|>[{broken", True, {"content": "<|tool_call|>[{broken"}, []),
    (f"functools{CALL}", False, {"content": f"functools{CALL}"}, []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "tools", "expected", "names"), CASES)
@given(data=st.data())
def test_parts_however_the_text_comes(text, tools, expected, names, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    found, calls = parts_of(text, tools, cuts)
    assert found == expected
    assert [c.name for c in calls] == names
    assert all(c.arguments == json.loads(CALL)[0]["arguments"] for c in calls)


ARGUMENTS = st.dictionaries(
    st.text('ab"\\{}[]€', max_size=4),
    st.recursive(
        st.one_of(st.none(), st.integers(), st.text('a"\\{}[],€')),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text("ab}"), inner)),
        max_leaves=4,
    ),
    max_size=3,
)


@given(st.data(), st.lists(st.tuples(st.text('f"\\é', min_size=1), ARGUMENTS), max_size=3))
def test_calls_come_as_they_are_written(data, calls):
    shapes = st.sampled_from(
        [
            lambda n, a: {"name": n, "arguments": a},
            lambda n, a: {"name": n, "parameters": a},
            lambda n, a: {"arguments": a, "name": n},
            lambda n, a: {"name": n, "arguments": json.dumps(a)},
        ]
    )
    written = [data.draw(shapes)(*call) for call in calls]
    indent = data.draw(st.sampled_from([None, 2]))
    text = f"<|tool_call|>{json.dumps(written, indent=indent)}<|/tool_call|>"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    stream, names, arguments = CallStream(), [], []
    for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True):
        for delta in stream.push(text[i:j]):
            if delta.name is not None:
                assert delta.call == len(names)
                names.append(delta.name)
                arguments.append("")
            arguments[delta.call] += delta.arguments
    assert names == [name for name, _ in calls]
    assert [json.loads(a) for a in arguments] == [a for _, a in calls]
