"""Stop texts and constraints: in the middle of characters, across tokens, with a real tokenizer."""

import json
import re
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from engine_fixtures import PLAIN, make
from hypothesis import given, settings
from hypothesis import strategies as st

from phikit.chat.token_bytes import token_bytes
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.engine import texts as module
from phikit.engine.base import Constraint, Request, Sampling, collect
from phikit.engine.local import LocalEngine
from phikit.engine.stops import StopTexts, before_stop
from phikit.engine.texts import Texts, Watch
from phikit.errors import PhikitError
from phikit.files import cache_folder

SMOL = cache_folder() / "smollm2"
TEXT = ["the cat sat on the mat 🙂 € ü; then it ate all of it, 12 times"] * 3


@pytest.fixture(scope="module")
def small():
    """A tokenizer and an engine that talks at random in it."""
    tokenizer = train_bpe(TEXT, 300, ["<|end|>"])
    model = make(replace(PLAIN, vocab_size=tokenizer.vocab_size, max_positions=512), sharpness=1)
    return tokenizer, LocalEngine(model, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def real():
    """SmolLM2's tokenizer, and a random model of its vocabulary: every token may come."""
    if not SMOL.exists():
        pytest.skip("phikit fetch smollm2")
    tokenizer = Tokenizer.load(SMOL)
    config = replace(PLAIN, vocab_size=tokenizer.vocab_size, max_positions=2048, tied=True)
    model = make(config, sharpness=0.5)
    return tokenizer, LocalEngine(model, tokenizer=tokenizer)


# --- the bytes of tokens -------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["small", "real"])
def test_bytes_add_up_to_the_text(which, request):
    tokenizer, _ = request.getfixturevalue(which)
    table = token_bytes(tokenizer, tokenizer.vocab_size + 7)
    assert len(table) == tokenizer.vocab_size + 7 and table[-1] == b""

    @settings(max_examples=40)
    @given(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=20), st.text())
    def check(ids, text):
        for some in (ids, tokenizer.encode(text)):
            joined = b"".join(table[i] for i in some)
            assert joined.decode(errors="replace") == tokenizer.decode(some)

    check()


def test_tokens_that_are_no_bytes_are_refused(small):
    tokenizer, _ = small
    other = json.loads(tokenizer.as_json())
    other["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    from tokenizers import Tokenizer as Fast

    with pytest.raises(PhikitError, match="WordPiece"):
        token_bytes(Tokenizer(Fast.from_str(json.dumps(other))))


# --- stop texts ----------------------------------------------------------------------------------


@given(
    st.text("ab€", max_size=30), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3),
    st.integers(1, 3),
)  # fmt: skip
def test_what_is_shown_never_holds_a_beginning_of_a_stop_text(text, stops, size):
    finder, shown, data = StopTexts(stops), b"", text.encode()
    while data and not finder.stopped:
        piece, data = data[:size], data[size:]
        shown += finder.push(piece)
        assert before_stop(text, stops).encode().startswith(shown)
    assert finder.stopped == any(stop in text for stop in stops)
    if not finder.stopped:
        assert shown + finder.rest() == text.encode()
    else:
        assert finder.push(b"more") == b"", "nothing is shown after a stop text"


def test_a_completion_ends_with_the_token_that_completes_a_stop_text(small):
    tokenizer, ordinary = small
    # whose draws no rounding of products of other shapes moves: one of many seeds meets it
    engine = LocalEngine(ordinary.model, tokenizer=tokenizer, invariant=True)
    plain = Sampling(max_tokens=32)
    table = token_bytes(tokenizer)

    @settings(max_examples=12)
    @given(st.integers(0, 10**6), st.integers(0, 25), st.integers(1, 6))
    def check(seed, start, length):
        ask = Request((5, 6, 7), plain, seed=seed)
        whole = collect(engine, [ask])[0][0].completion_ids
        text = tokenizer.decode(whole)
        stop = text[start : start + length].replace("\N{REPLACEMENT CHARACTER}", "")
        if not stop:
            return
        stopping = replace(plain, stop=(stop, "never to be seen"))
        group = collect(engine, [replace(ask, sampling=stopping, n=2), ask])
        rollout = group[0][0]
        count = len(rollout.completion_ids)
        assert rollout.completion_ids == whole[:count]  # neighbours do not matter
        assert group[1][0].completion_ids == whole
        spelled = b"".join(table[i] for i in rollout.completion_ids)
        before = spelled[: len(spelled) - len(table[rollout.completion_ids[-1]])]
        if rollout.finish == "stop":
            assert stop.encode() in spelled and stop.encode() not in before
        else:
            assert count == 32 and stop.encode() not in spelled

    check()


def test_a_stop_text_within_characters_of_several_tokens(small):
    """The model says nothing but the four bytes of one character, byte by byte."""
    tokenizer, engine = small
    bytes_of = token_bytes(tokenizer)
    letters = [bytes_of.index(bytes([b])) for b in "🙃".encode()]  # not among the learnt ones
    for stop, count in (("🙃", 4), ("🙂", 24), ("🙃🙃", 8)):
        told = Sampling(temperature=0, max_tokens=24, stop=(stop,))
        ids: list[int] = []
        while len(ids) < 24:  # each next byte is forced; the watch sees them one after the other
            bias = ((letters[len(ids) % 4], 100.0),)
            step = collect(engine, [Request((5,), replace(told, max_tokens=1, logit_bias=bias))])
            ids += step[0][0].completion_ids
        finder = StopTexts(told.stop)
        seen = 0
        while seen < len(ids) and not finder.stopped:
            finder.push(bytes_of[ids[seen]])
            seen += 1
        assert (seen, finder.stopped) == (count, stop != "🙂")


def test_engines_without_a_tokenizer_say_what_is_missing(small):
    engine = LocalEngine(small[1].model)
    for sampling in (Sampling(stop=("a",)), Sampling(constraint=Constraint("regex", "a"))):
        with pytest.raises(PhikitError, match="token ids alone") as caught:
            collect(engine, [Request((5,), sampling)])
        assert "its tokenizer" in caught.value.hint


# --- constraints ---------------------------------------------------------------------------------

NAMES = st.sampled_from(["name", "age", "the list", "ü", 'quo"te'])
SCHEMAS = st.recursive(
    st.one_of(
        st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 8)),
        st.builds(
            lambda a, n: {"type": "integer", "minimum": a, "maximum": a + n},
            st.integers(-50, 50), st.integers(0, 500),
        ),
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": [1, {"a": None}]}]),
        st.lists(st.sampled_from(["x", "yes", "€", 1, None]), min_size=1, unique=True).map(
            lambda values: {"enum": values}
        ),
        st.just({"type": "string", "pattern": "^[a-f]{2,4}-[0-9]{3}$"}),
    ),
    lambda inner: st.one_of(
        st.builds(
            lambda items, a, n: {
                "type": "array", "items": items, "minItems": a, "maxItems": a + n,
            },
            inner, st.integers(0, 2), st.integers(0, 2),
        ),
        st.builds(
            lambda properties, needed: {
                "type": "object", "properties": properties, "additionalProperties": False,
                "required": sorted(properties)[:needed],
            },
            st.dictionaries(NAMES, inner, max_size=3), st.integers(0, 3),
        ),
        st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some}),
    ),
    max_leaves=5,
)  # fmt: skip


@pytest.mark.slow
def test_whatever_is_sampled_keeps_to_its_schema_and_is_cut_within_it(real):
    tokenizer, engine = real
    finished = 0

    @settings(max_examples=20)
    @given(SCHEMAS, st.integers(0, 999), st.integers(1, 30), st.sampled_from([0.0, 0.7, 1.0, 3.0]))
    def check(schema, seed, cut, temperature):
        nonlocal finished
        sampling = Sampling(
            temperature, max_tokens=600, stop_ids=(0, 2),
            constraint=Constraint("json_schema", json.dumps(schema)),
        )  # fmt: skip
        whole = Request((1, 5), sampling, 3, seed)
        short = replace(whole, sampling=replace(sampling, max_tokens=cut))
        long_group, cut_group = collect(engine, [whole, short])
        for rollout, part in zip(long_group, cut_group, strict=True):
            assert rollout.meta == {}
            same = len(part.completion_ids)
            assert part.completion_ids == rollout.completion_ids[:same]
            assert part.finish == ("stop" if same == len(rollout.completion_ids) else "length")
            ids = [i for i in rollout.completion_ids if i not in (0, 2)]
            assert len(ids) >= len(rollout.completion_ids) - 1
            assert rollout.finish == "stop", tokenizer.decode(ids)
            jsonschema.validate(json.loads(tokenizer.decode(ids)), schema)
            finished += 1

    check()
    assert finished > 30


@pytest.mark.parametrize(
    "pattern", ["[0-9]{3}", "(yes|no)", "a+(b|€)*", "[^a-z\n]{1,6}x", "(ab|a)(c|bcd)?"]
)
def test_whatever_is_sampled_matches_its_expression(real, pattern):
    tokenizer, engine = real
    for stop_ids in ((), (0, 2)):
        sampling = Sampling(
            max_tokens=40, stop_ids=stop_ids, constraint=Constraint("regex", pattern)
        )
        for rollout in collect(engine, [Request((1,), sampling, 4)])[0]:
            ids = [i for i in rollout.completion_ids if i not in stop_ids]
            if rollout.finish == "stop":
                assert re.fullmatch(pattern, tokenizer.decode(ids)), tokenizer.decode(ids)
            else:
                assert len(ids) == 40 and pattern.endswith("*")


def test_a_grammar_and_its_end(real):
    tokenizer, engine = real
    source = 'start: list\nlist: "[" [item ("," item)*] "]"\nitem: /[0-9]/ | list'
    sampling = Sampling(max_tokens=200, stop_ids=(2,), constraint=Constraint("grammar", source))
    texts = [
        tokenizer.decode(r.completion_ids)
        for r in collect(engine, [Request((1,), sampling, 8)])[0]
        if r.finish == "stop"
    ]
    assert texts and all(isinstance(json.loads(text), list) for text in texts)


def test_log_probabilities_are_of_the_masked_and_of_the_models_own_distribution(small):
    tokenizer, engine = small
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")
    assert len(b) == 1
    sampling = Sampling(temperature=0.7, max_tokens=1, constraint=Constraint("regex", "[ab]"))
    rollouts = collect(engine, [Request((5, 6), sampling, 64)])[0]
    with torch.inference_mode():
        logits = engine.model(torch.tensor([[5, 6]]))[0, -1].float()
    own, allowed = logits.log_softmax(-1), torch.full_like(logits, -torch.inf)
    allowed[[a, b[0]]] = logits[[a, b[0]]] / 0.7
    masked = allowed.log_softmax(-1)
    assert {r.completion_ids[0] for r in rollouts} == {a, b[0]}
    for rollout in rollouts:
        token = rollout.completion_ids[0]
        assert rollout.finish == "stop"
        assert rollout.logprobs[0] == pytest.approx(float(masked[token]), abs=1e-5)
        assert rollout.raw_logprobs[0] == pytest.approx(float(own[token]), abs=1e-5)


@pytest.mark.parametrize("v", [1, 31, 64, 300])
def test_bits_put_tokens_out_of_reach_alike_both_ways(small, v, monkeypatch):
    texts = Texts(small[0], small[0].vocab_size)
    stream, logits = np.random.default_rng(v), torch.randn(4, v)
    rows = []
    for words in (None, 1, 4, 9):
        watch = Watch.__new__(Watch)
        watch.bits = None
        if words is not None:
            watch.bits = np.zeros(9, np.int32)
            watch.bits[:words] = stream.integers(-(2**31), 2**31, words)
        rows.append(SimpleNamespace(watch=watch))
    found = texts.mask(rows, logits)
    monkeypatch.setattr(module, "library", lambda: None)
    assert torch.equal(found, texts.mask(rows, logits))
    assert torch.equal(found[0, : 9 * 32], logits[0, : 9 * 32])
    for row, one in zip(found[1:], rows[1:], strict=True):
        bits = [int(one.watch.bits[t // 32]) >> t % 32 & 1 if t < 9 * 32 else 0 for t in range(v)]
        assert row.isfinite().tolist() == [bool(b) for b in bits]


def test_neighbours_without_a_constraint_draw_what_they_draw_alone(small):
    _, engine = small
    free = Request((5, 6, 7), Sampling(max_tokens=30, temperature=0.8), 3, 4)
    bound = Request((5, 6), Sampling(max_tokens=30, constraint=Constraint("regex", "a*")), 3)
    alone = [r.completion_ids for r in collect(engine, [free])[0]]
    assert [r.completion_ids for r in collect(engine, [bound, free])[1]] == alone


@pytest.mark.parametrize(
    ("kind", "source", "says"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", "", "only the empty text"),
        ("grammar", "start: other", "other"),
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", "7", "neither an object"),
        ("json_schema", '{"type": "objekt"}', "objekt"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("regex", "a" * 300_000, "longer than"),
    ],
)
def test_constraints_that_cannot_be_followed_are_refused_with_the_reason(small, kind, source, says):
    with pytest.raises(PhikitError, match=says):
        collect(small[1], [Request((5,), Sampling(constraint=Constraint(kind, source)))])
    with pytest.raises(PhikitError, match="must be one of json_schema"):
        Constraint("xml", "")
