"""Texts encoded by their pieces get the ids that the tokenizer alone gives them."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from phikit.chat import pieces
from phikit.chat.pieces import (
    CL100K_SPLIT,
    O200K_SPLIT,
    PieceEncoder,
    Rule,
    piece_encoder,
)
from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import SPLIT, Tokenizer, train_bpe
from phikit.compiled import Compiler

SOURCES = [p.read_text() for p in sorted(Path(__file__).parent.parent.rglob("test_*.py"))[:40]]
NASTY = "aZ '19.-_(\n\r\t\v\f\x1c\0" + "é’“中٣½\u200b\x85\u2028\u3000ſK\U0001d41a\u0301🎉"
WORDS = [
    "don't",
    "HTTPServer'Sx",
    "aBCd'LL",
    "'RE",
    "//\n//\n/x",
    ";\n/a",
    "/",
    "WE'LL",
    "it'S",
    "'re",
    "''s",
    "  x",
    " \n y",
    "\r\n\r\n",
    "a1b22c333d4444",
    "é",
    "\n",
    " ",
]
TEXTS = st.lists(
    st.text(NASTY, max_size=40)
    | st.text(max_size=20)
    | st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
    max_size=5,
)


def trained(rule: str) -> Tokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(rule), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        SOURCES, trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet)
    )
    return Tokenizer(fast)


ONE_DIGIT, THREE_DIGITS = trained(SPLIT), trained(CL100K_SPLIT)
CASED = trained(O200K_SPLIT)


@pytest.mark.parametrize(
    "tokenizer", [ONE_DIGIT, THREE_DIGITS, CASED], ids=["nano", "phi-4", "phi-4-mini"]
)
def test_ids_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    assert tokenizer._pieces is not None

    @given(TEXTS)
    @settings(max_examples=300)
    def check(texts: list[str]) -> None:
        assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]

    check()
    assert tokenizer.encode_batch(SOURCES) == [tokenizer.encode(text) for text in SOURCES]


def test_each_piece_goes_through_the_tokenizer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> list[list[int]]:
        asked.extend(texts)
        return [ONE_DIGIT.encode(text) for text in texts]

    encoder = PieceEncoder(Rule(1), encode)
    text = "one two two\none  two 1 1"
    for _ in range(3):
        assert [ids.tolist() for ids in encoder.encode([text])] == [ONE_DIGIT.encode(text)]
    assert sorted(asked) == sorted({"one", " two", "\n", " ", "1"})
    monkeypatch.setattr(pieces, "_KEPT", 3)  # a full table is emptied, and goes on
    assert encoder.encode([text, ""])[0].tolist() == ONE_DIGIT.encode(text)
    assert len(asked) == 10


def test_long_texts_and_long_pieces() -> None:
    texts = ["word " * 60_000, "x" * 500 + " y", "-" * 70, "", "é" * 150_000]
    assert ONE_DIGIT.encode_batch(texts) == [ONE_DIGIT.encode(text) for text in texts]
    many = [f"text {n} of many\n" * 50 for n in range(500)]
    assert ONE_DIGIT.encode_batch(many) == [ONE_DIGIT.encode(text) for text in many]


def test_other_rules_and_machines_without_a_compiler_go_the_plain_way() -> None:
    other = trained(r"\p{L}+|[^\p{L}]+")
    assert other._pieces is None
    assert other.encode_batch(["some text", ""]) == [other.encode("some text"), []]
    plain = json.loads(ONE_DIGIT.as_json())
    assert piece_encoder({**plain, "normalizer": {"type": "NFC"}}, list) is None
    assert piece_encoder({**plain, "model": {**plain["model"], "dropout": 0.1}}, list) is None
    alone = PieceEncoder(Rule(1), ONE_DIGIT._encode_all, Compiler(program="no-compiler-of-pieces"))
    assert [ids.tolist() for ids in alone.encode(["it is"])] == [ONE_DIGIT.encode("it is")]
    assert alone.encode(["it is"])[0].dtype == np.uint32


def test_what_is_no_text_is_refused_as_ever() -> None:
    tokenizer = train_bpe(["some text"], 300, NANO_SPECIAL)
    for encode in (tokenizer.encode_batch, tokenizer._encode_all):
        with pytest.raises((UnicodeEncodeError, TypeError)):
            encode(["\ud800"])
