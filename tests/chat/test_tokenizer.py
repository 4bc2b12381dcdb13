import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import BYTES, Tokenizer, train_bpe
from phikit.errors import PhikitError

TEXTS = [
    "def add(a, b):\n    return a + b  # 1234 numbers, it's plain\n",
    "Tom has 12 apples. He doesn't eat 5 of them. How many are left? Answer: 7\n",
    "naïve café — Ελληνικά 中文 🙂\r\n\tend",
] * 4
TOKENIZER = train_bpe(TEXTS, 360, NANO_SPECIAL)
CONTROL_IDS = set(TOKENIZER.special.values())

# texts made of control tokens, their fragments, and anything else
hostile = st.lists(
    st.one_of(
        st.sampled_from(NANO_SPECIAL),
        st.sampled_from(["<|", "|>", "<|im_", "start|>", "<th", "ink>", "Ġ", "\x00", "\u2028"]),
        st.text(max_size=8),
    ),
    max_size=12,
).map("".join)


@given(hostile)
def test_text_never_becomes_control_ids_and_comes_back_unchanged(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not CONTROL_IDS & set(ids)
    assert all(i < TOKENIZER.vocab_size for i in ids)
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.encode_batch([text, "x"])[0] == ids


@given(hostile)
def test_only_the_named_control_tokens_are_recognised(text: str) -> None:
    ids = TOKENIZER.encode_control(text, ["<think>"])
    found = [i for i in ids if i in CONTROL_IDS]
    assert found == [TOKENIZER.special["<think>"]] * text.count("<think>")
    assert TOKENIZER.decode(ids) == text


def test_control_tokens_are_the_last_ids_in_their_order() -> None:
    last = TOKENIZER.vocab_size - len(NANO_SPECIAL)
    assert TOKENIZER.special == {t: last + n for n, t in enumerate(NANO_SPECIAL)}


def test_digits_are_split_and_words_are_not() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode("12345")] == list("12345")
    assert len(TOKENIZER.encode("return")) < len("return")


def test_decode_can_leave_out_control_tokens() -> None:
    ids = TOKENIZER.encode_control("a<|im_end|>b", ["<|im_end|>"])
    assert TOKENIZER.decode(ids) == "a<|im_end|>b"
    assert TOKENIZER.decode(ids, skip_special=True) == "ab"


def test_training_is_deterministic() -> None:
    words = [f"w{random.Random(3).random()} {n % 13} tie{n % 7} eit{n % 5}" for n in range(300)]
    first, second = (train_bpe(words, 340, NANO_SPECIAL) for _ in range(2))
    assert first._fast.to_str() == second._fast.to_str()


def test_saved_and_loaded_is_the_same(tmp_path) -> None:
    TOKENIZER.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    text = "x<|im_start|> 12 <think>é"
    assert loaded.encode(text) == TOKENIZER.encode(text)
    assert loaded.special == TOKENIZER.special
    assert loaded.vocab_size == TOKENIZER.vocab_size


def test_control_tokens_marked_as_ordinary_are_not_reachable_either(tmp_path) -> None:
    """Published files mark some, such as <think>, as not special: text must not forge them."""
    TOKENIZER.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    for token in data["added_tokens"]:
        token["special"] = False
    path.write_text(json.dumps(data))
    loaded = Tokenizer.load(tmp_path)
    assert not set(loaded.special.values()) & set(loaded.encode("a<think>b<|im_end|>"))


def test_user_errors_are_explained(tmp_path) -> None:
    with pytest.raises(PhikitError, match="too small"):
        train_bpe(TEXTS, BYTES, NANO_SPECIAL)
    with pytest.raises(PhikitError, match="named twice"):
        train_bpe(TEXTS, 400, ["<a>", "<a>"])
    with pytest.raises(PhikitError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PhikitError, match="not a readable tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(PhikitError, match="no control token"):
        TOKENIZER.encode_control("x", ["<nothing>"])
