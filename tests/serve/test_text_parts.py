"""Stop strings, reasoning and tool calls, however the text is cut into tokens."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.chat.tokenizer import train_bpe
from phikit.serve.text import Characters, Parts, beginning

TOKENIZER = train_bpe(["abcab the cat 🙂 €"] * 3, 280, ["<|end|>"])


@given(st.text("ab€🙂"), st.lists(st.text("ab€🙂", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_stop_string(text, stop):
    characters, shown = Characters(TOKENIZER, stop), ""
    for token in TOKENIZER.encode(text):
        shown += characters.push(token)
        assert not any(word in shown for word in stop)
        if characters.stopped:
            break
    shown += characters.finish()
    # the string that is complete first ends it; of those, the one that begins first
    ends = [text.index(word) + len(word) for word in stop if word in text]
    assert characters.stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown) and any(text[len(shown) :].startswith(w) for w in stop)
        assert not any(word in shown for word in stop)


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
