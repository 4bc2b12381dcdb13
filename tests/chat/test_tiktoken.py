"""Tokenizers from tiktoken rank files, held against tiktoken's own algorithm written plainly."""

import base64
import hashlib
import itertools
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phikit.chat import tiktoken
from phikit.chat.format import chat_format
from phikit.chat.templates import PHI4, PHI4_MINI, PHI4_REASONING, PHI4_REASONING_VISION
from phikit.chat.tiktoken import (
    CL100K,
    CL100K_REASONING,
    CL100K_REASONING_VISION,
    O200K,
    Encoding,
)
from phikit.chat.tokenizer import BYTES, Tokenizer, train_bpe
from phikit.errors import PhikitError

TEXTS = [
    "def add(a, b):\n    return a + b  # 1234 numbers, it's plain\r\n",
    "Tom HAS 12 apples. He doesn't eat 5 of them. I'LL ask: how many are left?\n\n\t7",
    "naïve café — Ελληνικά 中文 🙂 hello hello HelloWorld/path//\n",
] * 4


def ranks_of(texts: list[str], size: int) -> dict[bytes, int]:
    """A small true set of ranks: what a byte-level BPE learns, in the order in which it learns."""
    learnt = train_bpe(texts, size, [])._fast.get_vocab()
    byte = {letter: number for number, letter in tiktoken._byte_letters().items()}
    return {bytes([byte[c] for c in token]): rank for token, rank in learnt.items()}


def plain_bpe(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's rule: join the neighbours whose joint token has the lowest rank, leftmost."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        joint = [ranks.get(a + b, 10**9) for a, b in itertools.pairwise(parts)]
        if min(joint) == 10**9:
            break
        i = joint.index(min(joint))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def plain_encode(text: str, encoding: Encoding, ranks: dict[bytes, int]) -> list[int]:
    regex = pytest.importorskip("regex")
    words = [m[0] for m in regex.finditer(encoding.split, text)]
    assert "".join(words) == text
    return [i for word in words for i in plain_bpe(word.encode(), ranks)]


RANKS = ranks_of(TEXTS, 400)
SMALL = {
    e.name: replace(
        e,
        special={t: 400 + i - e.first_special for t, i in e.special.items()},
        first_special=400,
        vocab_size=400 + e.vocab_size - e.first_special,
    )
    for e in (CL100K, CL100K_REASONING, CL100K_REASONING_VISION, O200K)
}
TOKENIZERS = {name: tiktoken.from_ranks(RANKS, e) for name, e in SMALL.items()}
texts = st.one_of(st.text(), st.lists(st.sampled_from(" \n\t'sSlLhelo12A9/.éÉ中🙂<|")).map("".join))


@pytest.mark.parametrize("name", SMALL)
def test_text_gets_the_ids_that_tiktoken_gives(name: str) -> None:
    @given(texts)
    def same(text: str) -> None:
        ids = TOKENIZERS[name].encode(text)
        assert ids == plain_encode(text, SMALL[name], RANKS)
        assert TOKENIZERS[name].decode(ids) == text

    same()


def test_a_word_longer_than_three_digits_is_cut_in_threes() -> None:
    for tokenizer in TOKENIZERS.values():
        pieces = tokenizer._plain.pre_tokenizer.pre_tokenize_str("1234567")
        assert [end - start for _, (start, end) in pieces] == [3, 3, 1]


def test_control_tokens_have_the_published_ids() -> None:
    phi4, reasoning, mini = CL100K.control(), CL100K_REASONING.control(), O200K.control()
    assert list(phi4.values()) == list(range(100_256, 100_352))
    assert (phi4["<|dummy_85|>"], phi4["<|dummy_87|>"]) == (100_349, 100_351)
    assert (phi4["<|im_start|>"], phi4["<|im_end|>"], phi4["<|im_sep|>"]) == (
        100_264, 100_265, 100_266,
    )  # fmt: skip
    assert (reasoning["<think>"], reasoning["</think>"]) == (100_350, 100_351)
    assert reasoning["<|dummy_85|>"] == 100_349
    assert (reasoning["<|dummy_0|>"], reasoning["<|dummy_84|>"]) == (100_256, 100_348)
    assert list(mini.values()) == list(range(199_998, 200_064))
    assert (mini["<|endoftext|>"], mini["<|assistant|>"], mini["<|end|>"]) == (
        199_999, 200_019, 200_020,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "template", "pad"),
    [
        ("cl100k", PHI4, "<|dummy_85|>"),
        ("cl100k-reasoning", PHI4_REASONING, "<|dummy_85|>"),
        ("cl100k-reasoning-vision", PHI4_REASONING_VISION, "<|dummy_85|>"),
        ("o200k", PHI4_MINI, "<|endoftext|>"),
    ],
)
def test_saved_it_is_a_member_s_tokenizer(name: str, template, pad: str, tmp_path: Path) -> None:
    TOKENIZERS[name].save(tmp_path)
    form = chat_format(Tokenizer.load(tmp_path))
    # phi-4-multimodal writes as phi-4-mini does, and both have its placeholders' tokens
    assert form.template.header == template.header and form.template.system == template.system
    assert form.pad_id == form.tokenizer.id_of(pad)
    assert form.tokenizer.vocab_size == SMALL[name].vocab_size
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.pad_token == pad
    text = "Tom doesn't\n eat 12345"
    assert theirs.encode(text) == form.tokenizer.encode(text)
    messages = [{"role": "user", "content": "\n hi"}, {"role": "assistant", "content": "yes"}]
    ids = theirs.apply_chat_template(messages, return_dict=False)
    assert ids == form.render(messages).ids


def test_rank_files_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "some.tiktoken"
    lines = [f"{base64.b64encode(t).decode()} {r}" for t, r in RANKS.items()]
    path.write_text("\n".join(lines) + "\n")
    assert tiktoken.read_ranks(path) == RANKS
    again = tiktoken.load_ranks(path, SMALL["cl100k"])
    assert again._fast.to_str() == TOKENIZERS["cl100k"]._fast.to_str()
    for line, said in (
        ("not a line", "not a token"),
        ("!!!! 7", "not a token"),
        (lines[3], ".*came before"),
    ):
        path.write_text("\n".join([*lines, line]))
        with pytest.raises(PhikitError, match=rf"some\.tiktoken:{len(lines) + 1}: {said}"):
            tiktoken.read_ranks(path)
    path.write_text("\n".join(lines[:100]))
    with pytest.raises(PhikitError, match=f"of the {BYTES} single bytes"):
        tiktoken.read_ranks(path)
    with pytest.raises(PhikitError, match="cl100k end before 300"):
        tiktoken.from_ranks(RANKS, replace(SMALL["cl100k"], first_special=300))


# --- the real rank files -------------------------------------------------------------------------

WHEEL = "litellm==1.109.1"  # only unpacked, never installed
REAL = [
    (
        CL100K, "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        233_378, [9906, 1917, 11, 220, 4513, 1774, 95980, 588],
    ),
    (
        O200K, "fb374d419588a4632f3f557e76b4b70aebbca790",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        446_189, [13225, 2375, 11, 220, 7633, 2548, 153475, 737],
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--dest", str(folder), WHEEL], capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"{WHEEL} could not be downloaded: {done.stderr.strip()[-200:]}")
    return zipfile.ZipFile(next(folder.glob("*.whl")))


@pytest.mark.slow
@pytest.mark.parametrize(("encoding", "file", "sha256", "merges", "known"), REAL)
def test_the_real_tokenizers(wheel, encoding, file, sha256, merges, known, tmp_path) -> None:
    path = tmp_path / "real.tiktoken"
    name = next(n for n in wheel.namelist() if n.endswith(file))
    path.write_bytes(wheel.read(name))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    ranks = tiktoken.read_ranks(path)
    assert len(tiktoken.merges_of(ranks)) == merges
    tokenizer = tiktoken.from_ranks(ranks, encoding)
    assert tokenizer.vocab_size == encoding.vocab_size
    assert tokenizer.encode("Hello world, 12345 naïve") == known
    sources = sorted(Path(subprocess.__file__).parent.glob("*.py"))[:20]
    real = [line for s in sources for line in s.read_text("utf-8").splitlines(True)[::7]]
    for text in [*real, *TEXTS, "".join(map(chr, range(32, 0x500)))]:
        ids = tokenizer.encode(text)
        assert ids == plain_encode(text, encoding, ranks)
        assert tokenizer.decode(ids) == text
