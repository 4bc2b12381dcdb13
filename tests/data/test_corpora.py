"""`phikit data read | build` as they are asked for, and the stages of a recipe that do the same."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phikit.cli import app
from phikit.data.stages import STAGES
from phikit.errors import PhikitError
from phikit.records import Document, read_records
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
