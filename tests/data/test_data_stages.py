import hashlib
import json
import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from phikit.chat.format import chat_format
from phikit.chat.tokenizer import Tokenizer
from phikit.data.shards import Shards
from phikit.data.stages import STAGES
from phikit.errors import PhikitError
from phikit.records import Document, Sample, read_records, write_records
from phikit.stage import Context

BY_VERB = {stage.verb: stage for stage in STAGES}
ITEM = (
    "A merchant packs 14 crates with 23 oranges each and gives away 37 of them on the way to the "
    "harbour. How many oranges does the merchant have left in the end?"
)


def run(verb: str, folder: Path, inputs: dict[str, Path], seed: int = 0, **settings):
    stage = BY_VERB[verb]
    folder.mkdir(parents=True, exist_ok=True)
    for name in stage.inputs:
        assert name[-1] in "?*" or name in inputs
    return stage.run(Context(folder, seed=seed), stage.config(**settings), inputs)


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def question(n: int) -> dict[str, str]:
    rng = random.Random(n)
    a, b = rng.randrange(10, 99), rng.randrange(10, 99)
    return {"role": "user", "content": f"Add {a} and {b}, and then take {n} away from the sum."}


def sample(n: int, source: str, text: str = "") -> Sample:
    ask = question(n)
    answer = {"role": "assistant", "content": f"<think>{n}</think>Answer: {n}"}
    return Sample(
        kind="sum",
        source=source,
        text=text or f"{ask['content']}\n<think>so {n}</think> Answer: {n}",
        messages=(ask, answer),
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """All stages, run once over a small folder of documents and some samples."""
    root = tmp_path_factory.mktemp("stages")
    rng = random.Random(1)
    words = ["the", "of", "is", "and", "list", "value", "method", "called", "when", "given"]

    def essay(n: int) -> str:
        return " ".join(
            f"{rng.choice(words)} {rng.choice('bcdfg')}{rng.randrange(99)}x" for _ in range(n)
        )

    def function(n: int) -> str:
        names = [f"{rng.choice(words)}_{rng.randrange(99)}" for _ in range(12)]
        body = "".join(f"    {name} = value * {rng.randrange(9)}\n" for name in names)
        return f"def f{n}(value):\n{body}    return {names[-1]}\n\n\n"

    own = root / "own"
    own.mkdir()
    texts = [essay(60) for _ in range(30)]
    for n, text in enumerate(texts):
        (own / f"page{n}.txt").write_text(text)
    (own / "copy.txt").write_text(texts[3] + " altered at the end")
    (own / "leak.txt").write_text(essay(30) + " " + ITEM.upper())
    (own / "broken.txt").write_bytes(b"\xff\xfe\xff" * 100)
    (own / "short.txt").write_text("short")
    (own / "code.py").write_text("".join(function(n) for n in range(40)))
    for n in range(3):
        (own / f"book{n}.md").write_text(essay(1200))
    item = Sample(kind="p", source="synthetic", messages=({"role": "user", "content": ITEM},))
    for name in ("items", "first", "second"):
        (root / name).mkdir()
    write_records(root / "items" / "items.parquet", [item], Sample)
    first = [sample(n, "synthetic") for n in range(300)]
    leak = {"role": "user", "content": ITEM.replace(" ", "  ")}
    first.append(Sample(kind="p", source="synthetic", text=ITEM, messages=(leak,)))
    write_records(root / "first" / "samples.parquet", first, Sample)
    rewrites = [sample(1000 + n, "web_rewrites") for n in range(100)]
    write_records(root / "second" / "samples.parquet", rewrites, Sample)
    summaries = {}
    reader = {"root": str(own), "split_chars": 500}
    summaries["documents"] = run(
        "data.documents", root / "documents", {"items": root / "items"}, reader=reader
    )
    summaries["clean"] = run(
        "data.decontaminate",
        root / "clean",
        {"items": root / "items", "samples": root / "first"},
    )
    inputs = {
        "documents": root / "documents",
        "samples.0": root / "clean",
        "samples.1": root / "second",
    }
    summaries["tokenizer"] = run("data.tokenizer", root / "tokenizer", inputs, vocab_size=400)
    inputs["tokenizer"] = root / "tokenizer"
    summaries["shards"] = run("data.shards", root / "shards", inputs, seed=5, tokens=60_000)
    summaries["long"] = run(
        "data.shards", root / "long", inputs, tokens=40_000, long_share=0.3, long_min_tokens=900
    )
    (root / "summaries.json").write_text(json.dumps(summaries))
    return root


def summary(made: Path, name: str) -> dict:
    return json.loads((made / "summaries.json").read_text())[name]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_documents_are_cleaned_and_every_rejection_is_told(made) -> None:
    kept = read_records(made / "documents" / "documents.parquet", Document)
    paths = {d.meta["path"] for d in kept}
    assert "copy.txt" in paths, "of two alike the longer one stays"
    assert not {"page3.txt", "leak.txt", "broken.txt", "short.txt"} & paths
    reasons = {
        r["name"].split(":")[0]: r["reason"] for r in lines(made / "documents" / "rejected.jsonl")
    }
    assert reasons["leak.txt"] == "contaminated"
    assert reasons["broken.txt"] == "bad encoding"
    assert reasons["short.txt"] == "too short"
    assert reasons["page3.txt"] == "near duplicate"
    assert "copy.txt" not in reasons
    out = summary(made, "documents")
    assert out["documents"] == len(kept)
    assert (out["unreadable"], out["contaminated"]) == (1, 1)
    unread = out["by_source"].pop("(unreadable)")
    assert (unread["read"], unread["kept"], unread["rejected"]) == (0, 0, {"bad encoding": 1})
    for row in out["by_source"].values():
        assert row["read"] == row["kept"] + sum(row["rejected"].values())
    (row,) = lines(made / "documents" / "contamination.jsonl")
    assert row["item_text"] == ITEM
    assert ITEM.upper() in row["text"]
    assert not list((made / "documents").glob(".*"))


def test_contaminated_samples_are_removed(made) -> None:
    assert summary(made, "clean")["contaminated"] == 1
    kept = read_records(made / "clean" / "samples.parquet", Sample)
    assert len(kept) == 300
    assert all(s.kind == "sum" for s in kept)


def test_the_tokenizer_speaks_the_chat_format(made) -> None:
    tokenizer = Tokenizer.load(made / "tokenizer" / "tokenizer")
    assert tokenizer.vocab_size == summary(made, "tokenizer")["vocab_size"]
    assert chat_format(tokenizer).template.name == "phi4"
    assert "<|im_sep|>" in tokenizer.config["chat_template"]


def test_shards_hold_the_mixture(made) -> None:
    shards = Shards(made / "shards")
    tokenizer = Tokenizer.load(made / "tokenizer" / "tokenizer")
    end, think = tokenizer.special["<|endoftext|>"], tokenizer.special["<think>"]
    out = summary(made, "shards")
    assert out["tokens"] == shards.index["tokens"] == pytest.approx(60_000, rel=0.05)
    shares = {s: row["share"] for s, row in out["sources"].items()}
    assert shares["synthetic"] == pytest.approx(0.4, abs=0.02)
    assert out["sources"]["synthetic"]["epochs"] > 1
    for ids, source in zip(shards.documents(), shards.source_of, strict=True):
        assert ids[-1] == end
        assert end not in ids[:-1]
        is_sample = shards.sources[source] in ("synthetic", "web_rewrites")
        assert (think in ids) == is_sample
    texts = {tokenizer.decode(ids[:-1].tolist()) for ids in shards.documents()}
    documents = read_records(made / "documents" / "documents.parquet", Document)
    samples = read_records(made / "clean" / "samples.parquet", Sample)
    assert texts & {d.text for d in documents}
    assert texts & {s.text for s in samples}


def test_midtraining_gets_its_share_of_long_documents(made) -> None:
    out = summary(made, "long")
    assert out["sources"]["long"]["share"] == pytest.approx(0.3, abs=0.05)
    shards = Shards(made / "long")
    number = shards.sources.index("long")
    sizes = [
        len(d) for d, s in zip(shards.documents(), shards.source_of, strict=True) if s == number
    ]
    assert min(sizes) >= 900


def test_running_again_gives_the_same_bytes(made, tmp_path) -> None:
    inputs = {
        "documents": made / "documents",
        "samples.0": made / "clean",
        "samples.1": made / "second",
    }
    run("data.tokenizer", tmp_path / "tokenizer", inputs, vocab_size=400)
    assert fingerprint(tmp_path / "tokenizer") == fingerprint(made / "tokenizer")
    inputs["tokenizer"] = tmp_path / "tokenizer"
    run("data.shards", tmp_path / "shards", inputs, seed=5, tokens=60_000)
    assert fingerprint(tmp_path / "shards") == fingerprint(made / "shards")
    reader = {"root": str(made / "own"), "split_chars": 500}
    run("data.documents", tmp_path / "documents", {"items": made / "items"}, reader=reader)
    assert fingerprint(tmp_path / "documents") == fingerprint(made / "documents")


def test_mistakes_are_explained(made, tmp_path) -> None:
    inputs = {"documents": made / "documents", "tokenizer": made / "tokenizer"}
    with pytest.raises(PhikitError, match="no such data"):
        run("data.shards", tmp_path / "a", inputs)
    weights = {"web": 1, "code": 1, "acquired": 1}
    with pytest.raises(PhikitError, match="no document of acquired, code"):
        run(
            "data.shards", tmp_path / "b", inputs,
            weights=weights, long_share=0.5, long_min_tokens=10**6,
        )  # fmt: skip
    (tmp_path / "chat").mkdir()
    silent = Sample(kind="k", source="synthetic", messages=(question(1),))
    write_records(tmp_path / "chat" / "samples.parquet", [silent], Sample)
    with pytest.raises(PhikitError, match="no text to pretrain on"):
        run("data.shards", tmp_path / "c", {**inputs, "samples.0": tmp_path / "chat"})
    with pytest.raises(ValidationError):
        BY_VERB["data.shards"].config(tokenz=5)


def test_every_setting_is_described() -> None:
    for stage in STAGES:
        for name, field in stage.config.model_fields.items():
            described = field.description or getattr(field.annotation, "__doc__", None)
            assert described, f"{stage.verb}: {name}"
        assert stage.estimate is not None
        assert stage.estimate(stage.config()).size
        assert stage.help
