"""`phikit data read | build` as they are asked for, and the stages of a recipe that do the same."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.cli import app
from phikit.data.stages import STAGES
from phikit.errors import PhikitError
from phikit.records import Document, read_records
from phikit.reporting import inspection, tracing
from phikit.stage import Context

PAGES = Path(__file__).parent / "pages"
BY_VERB = {stage.verb: stage for stage in STAGES}


def say(*words: str):
    return CliRunner().invoke(app, list(words))


def test_read_tells_what_it_read_and_what_it_set_aside(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "in" / "notes.md").write_text("Some notes.")
    done = say("data", "read", str(PAGES), str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert done.exit_code == 0, done.output
    assert "5 documents" in done.output and "page                     3" in done.output
    kept = read_records(tmp_path / "out" / "documents.parquet", Document)
    assert {d.meta["kind"] for d in kept} == {"page", "text"}
    aside = json.loads((tmp_path / "out" / "set-aside.jsonl").read_text())
    assert (aside["name"], aside["reason"]) == ("cut.parquet", "not a whole Parquet file")


def test_what_is_asked_for_wrongly_is_said(tmp_path) -> None:
    cases = [
        (["data", "read", "nowhere", "--out", "o"], "nowhere is not there"),
        (["data", "build", str(PAGES), "--out", "o", "--weight", "web"], "is no CLASS=NUMBER"),
        (["data", "build", str(PAGES), "--out", "o", "--set", "shard_byte=3"], "shard_bytes"),
        (["data", "build", str(PAGES), "--out", "o", "--tokenizer", str(PAGES)], "tokenizer.json"),
        (["data", "build", str(PAGES), "--out", "o", "--tokens", "9"], "give its tokenizer"),
        (["data", "build", str(PAGES), "--out", "o", "--weight", "web=1"], "give its tokenizer"),
        (["data", "build", str(PAGES), "--out", "o", "--set", "dedup.bands=200"], "200 bands"),
        (
            [
                "data",
                "build",
                str(PAGES),
                "--out",
                "o",
                "--set",
                "decontamination.partial_ratio=0.8",
            ],
            "partial_ratio 0.8 is above contaminated_ratio 0.5",
        ),
    ]
    for words, expected in cases:
        words = [str(tmp_path / "o") if word == "o" else word for word in words]
        done = say(*words)
        assert done.exit_code == 2 and expected in done.stderr, done.output


def test_build_makes_documents_of_real_pages_and_tells_the_counts(tmp_path) -> None:
    out = tmp_path / "corpus"
    words = ["data", "build", str(PAGES), "--out", str(out), "--workers", "1"]
    done = say(*words, "--set", "filters.prose=[language, personal]")
    assert done.exit_code == 0, done.output
    report = json.loads((out / "corpus.json").read_text())
    assert report["read"] == {"web": 4} and report["documents"] >= 3
    assert f"{report['documents']:,} documents" in done.output
    assert "nothing: no items were given" in done.output


def test_the_stages_filter_and_corpus_do_the_same(tmp_path) -> None:
    corpus, filtered = BY_VERB["data.corpus"], BY_VERB["data.filter"]
    for folder in ("corpus", "filter"):
        (tmp_path / folder).mkdir()
    settings = corpus.config(paths=(str(PAGES),), filters={"prose": ["length"]})
    corpus.run(Context(tmp_path / "corpus"), settings, {})
    kept = read_records(tmp_path / "corpus" / "documents.parquet", Document)
    assert len(kept) == 4
    settings = filtered.config(prose=("fineweb", "language"))
    given = {"documents": tmp_path / "corpus"}
    summary = filtered.run(Context(tmp_path / "filter"), settings, given)
    passed = read_records(tmp_path / "filter" / "documents.parquet", Document)
    assert len(passed) == summary["documents"] == 4 - sum(summary["rejected"].values())
    assert all(d.meta["filters"]["language"]["language"] == "en" for d in passed)
    with pytest.raises(PhikitError, match="no paths"):
        corpus.run(Context(tmp_path / "corpus"), corpus.config(), {})


def test_a_corpus_counts_its_documents_once_and_says_what_became_of_each(tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for page in PAGES.glob("*.html"):
        (folder / page.name).write_bytes(page.read_bytes())
        again = page.read_bytes().replace(b"</body>", b"<p>And one sentence more.</p></body>")
        (folder / f"again-{page.name}").write_bytes(again)
    tokenizer = train_bpe(["some text to learn from"] * 5, 300, NANO_SPECIAL)
    tokenizer.save(tmp_path / "tokenizer")
    out = tmp_path / "corpus"
    words = ["data", "build", str(folder), "--out", str(out), "--workers", "1"]
    done = say(*words, "--tokenizer", str(tmp_path / "tokenizer"), "--set", "filters.prose=[]")
    assert done.exit_code == 0, done.output
    report = json.loads((out / "corpus.json").read_text())
    figures = dict(inspection.sheet(out).figures)
    assert figures["documents"] == report["documents"] == 3

    def became(name: str) -> list[tuple]:
        sections = {s.title: s for s in tracing.sheet(name, [out]).sections}
        return list(sections["What it went into"].rows)

    kept = read_records(out / "4-kept" / "00000" / "documents.parquet", Document)
    steps = became(kept[1].id)
    assert [row[2] for row in steps] == ["kept", "tokens", "training shards"]
    assert steps[0][3] == "document 2 of 3" and "tokens are there once" in steps[2][3]
    passed = read_records(out / "1-clean" / "00000" / "documents.parquet", Document)
    gone = next(d for d in passed if d.id not in {k.id for k in kept})
    (removed,) = became(gone.id)
    assert removed[2] == "removed: near duplicate"
    assert removed[3].split(",")[0] in {f"of {k.id}" for k in kept}


def test_a_corpus_in_a_run_is_counted_once_too(tmp_path) -> None:
    stage = BY_VERB["data.corpus"]
    (tmp_path / "00-corpus").mkdir()
    settings = stage.config(paths=(str(PAGES),), filters={"prose": ["length"]})
    stage.run(Context(tmp_path / "00-corpus"), settings, {})
    assert dict(inspection.sheet(tmp_path).figures)["documents"] == 4  # three and a README


def test_documents_of_any_number_of_classes_are_tokenised(tmp_path) -> None:
    rows = [{"text": f"text {n} " * 40, "source": f"class-{n}"} for n in range(300)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_bpe(["some text to learn from"] * 5, 300, NANO_SPECIAL).save(tmp_path / "tokenizer")
    out = tmp_path / "corpus"
    words = ["data", "build", str(tmp_path / "rows.jsonl"), "--out", str(out), "--workers", "1"]
    done = say(*words, "--tokenizer", str(tmp_path / "tokenizer"), "--set", "filters.prose=[]")
    assert done.exit_code == 0, done.output
    report = json.loads((out / "corpus.json").read_text())
    assert len(report["mixture"]["sources"]) == len(report["kept"]) == 300
