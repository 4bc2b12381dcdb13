"""Words and n-grams as integers: what they are, and that C and arrays make the same ones."""

import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.compiled import Compiler
from phikit.data import folding
from phikit.data.folding import fold, words
from phikit.data.ngram_work import ByArrays, InC, Wanted, Work, work
from phikit.data.ngrams import Words, find_ngrams, hash_words, text_keys, text_ngrams
from phikit.errors import PhikitError

NASTY = (
    "abcZ '`,1234.-_\n\0"
    + "éßœ’“中カがﾊﾞ٣½①ⅷ\u200b\u00adЅ\U0001d41a\u0301\ud800\ue000🎉ª²한\u1100\u1161İſẛᾼ\u0345"
)
TEXTS = st.lists(st.text(NASTY, max_size=40) | st.text(max_size=40), max_size=5)


@pytest.fixture(params=[InC, ByArrays])
def by(request: pytest.FixtureRequest) -> Work:
    made: Work = request.param()
    return made


def one(hashes: np.ndarray) -> Words:
    return Words(hashes, np.array([0, len(hashes)]))


@given(TEXTS, st.integers(1, 9))
def test_c_and_arrays_make_the_same_integers(texts: list[str], n: int) -> None:
    in_c, plain = InC(), ByArrays()
    found = hash_words(texts, by=in_c)
    same = hash_words(texts, by=plain)
    assert found.bounds.tolist() == same.bounds.tolist()
    assert found.hashes.tolist() == same.hashes.tolist()
    assert text_keys(found, by=in_c).tolist() == text_keys(found, by=plain).tolist()
    for shorter in (False, True):
        grams = text_ngrams(found, n, shorter, by=in_c)
        assert grams.hashes.tolist() == text_ngrams(found, n, shorter, by=plain).hashes.tolist()
    grams = text_ngrams(found, n).hashes
    wanted = Wanted(np.unique(grams[::2]))
    at, places = find_ngrams(found, n, wanted, by=in_c)
    assert [at.tolist(), places.tolist()] == [
        each.tolist() for each in find_ngrams(found, n, wanted, by=plain)
    ]
    assert len(at) == np.isin(grams, wanted.sorted).sum()
    for begin, place in zip(at, places, strict=True):
        gram = text_ngrams(one(found.hashes[begin : begin + n]), n).hashes[0]
        assert gram == wanted.sorted[place]


def test_real_text_gives_the_same_integers() -> None:
    texts = [
        p.read_text() for p in sorted(Path(unicodedata.__spec__.origin or "").parent.glob("*.py"))
    ]
    texts += [p.read_text() for p in sorted(Path(__file__).parent.glob("*.py"))]
    found = hash_words(texts, by=InC())
    assert len(found.hashes) > 5000
    assert found.hashes.tolist() == hash_words(texts, by=ByArrays()).hashes.tolist()
    grams = [text_ngrams(found, 13, by=each).hashes for each in (InC(), ByArrays())]
    assert grams[0].tolist() == grams[1].tolist()


def fold_whole(text: str) -> str:
    """`fold` with the text normalised as a whole."""
    text = folding.revealed(text)
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(map(folding._fold, text))


@given(st.text(NASTY) | st.text())
def test_characters_fold_one_by_one_as_they_do_together(text: str) -> None:
    assert words(text) == folding._PLAIN_WORD.findall(
        folding._PLAIN_JOINING.sub("", fold_whole(text)).lower()
    )


def test_every_character_folds_beside_marks_as_it_does_alone() -> None:
    for code in range(0x80, sys.maxunicode + 1, 7):
        text = f"a{chr(code)}\u0301\u0345b\u0327{chr(code)}"
        assert fold(text).lower() == fold_whole(text).lower(), hex(code)


def test_without_a_compiler_arrays_do_the_work_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    missing = Compiler(program="no-compiler-of-words")
    with pytest.raises(PhikitError, match="no C compiler"):
        InC(missing)
    assert all(isinstance(work(missing), ByArrays) for _ in range(2))
    said = [r.message for r in caplog.records if "no-compiler-of-words" in r.message]
    assert len(said) == 1 and "slower" in said[0]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.integers(1, 8))
def test_ngram_integers_depend_on_the_ngram_alone(values: list[int], n: int) -> None:
    hashes = np.array(values, np.uint64)
    got = text_ngrams(one(hashes), n).hashes
    assert len(got) == max(0, len(values) - n + 1)
    for i, gram in enumerate(got):
        assert gram == text_ngrams(one(hashes[i : i + n]), n).hashes[0]
    assert len(np.unique(got)) == len({tuple(values[i : i + n]) for i in range(len(got))})


def test_word_hashes_are_the_same_on_every_machine(by: Work) -> None:
    assert hash_words(["Salt"], by).hashes.tolist() == hash_words(["ѕalt"], by).hashes.tolist()
    assert hash_words(["salt"], by).hashes.tolist() == [17405588496834098335]
    assert words("It's  5kg of “Ѕalt” -- 1,200 cafés! 中文") == [
        "its", "5", "kg", "of", "salt", "1200", "cafes", "中", "文",
    ]  # fmt: skip


@given(TEXTS)
def test_words_and_their_hashes_agree_whatever_the_batch(texts: list[str]) -> None:
    found = hash_words(texts)
    assert len(found) == len(texts)
    alone = [hash_words([word]).hashes[0] for text in texts for word in words(text)]
    assert found.hashes.tolist() == alone
    assert np.diff(found.bounds).tolist() == [len(words(text)) for text in texts]
    for number, text in enumerate(texts):
        assert text_keys(found)[number] == text_keys(hash_words([text]))[0]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=8), max_size=5), st.integers(1, 4))
def test_ngrams_of_many_texts_are_those_of_each(texts: list[list[str]], n: int) -> None:
    found = hash_words([" ".join(t) for t in texts])
    plain, filled = text_ngrams(found, n), text_ngrams(found, n, shorter=True)
    for number in range(len(texts)):
        alone = one(found.of(number))
        assert plain.of(number).tolist() == text_ngrams(alone, n).hashes.tolist()
        least = min(n, len(alone.hashes))
        expected = text_ngrams(alone, least).hashes.tolist() if least else []
        assert filled.of(number).tolist() == expected
