"""Looking into a corpus, and following a record: a real small run, and a corpus of one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer
from typer.testing import CliRunner

from phikit import progress, run, synth_runs
from phikit.cli import app
from phikit.errors import PhikitError
from phikit.recipes import load
from phikit.records import Document, Sample, read_records, write_records
from phikit.reporting import inspection, sheets, tracing

RECIPE = """\
name: small
about: data stages alone
stages:
  - name: items
    verb: synth.items
    config: {{count: 6, types: {{choice: 1}}, recall_count: 0}}
  - name: documents
    verb: data.documents
    inputs: {{items: items}}
    config: {{reader: {{root: {root}, licence: CC0}}}}
  - name: part
    verb: data.part
    inputs: {{documents: documents}}
    config: {{end: 0.6}}
  - name: textbook
    verb: synth.procedural
    inputs: {{items: items, documents: documents}}
    config: {{count: 60, types: {{comparison: 1}}, rewrites: 20, slips: 0.3}}
  - name: tokenizer
    verb: data.tokenizer
    inputs: {{documents: documents, samples: [textbook]}}
    config: {{vocab_size: 320, weights: &w {{web: 1, synthetic: 1, web_rewrites: 1}}}}
  - name: shards
    verb: data.shards
    inputs: {{tokenizer: tokenizer, documents: part, samples: [textbook]}}
    config: {{tokens: 30000, weights: *w}}
"""
SENTENCE = "The {0} of the old mill turns the {1} when the river brings enough water in spring. "
NOUNS = ("wheel", "stone", "axle", "hammer", "bellows", "saw", "pump", "press", "beam", "chain")


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    for i, noun in enumerate(NOUNS):
        text = SENTENCE.format(noun, NOUNS[i - 1]) + f"It was built by the {noun} makers of a town."
        (root / f"{noun}.txt").write_text(f"{text}\n\nNobody knows who paid for the {noun} then.\n")
    (root / "copy.txt").write_text((root / "wheel.txt").read_text())
    (root / "broken.txt").write_bytes(b"\xff\xfe broken")
    recipe = root.parent / "small.yaml"
    recipe.write_text(RECIPE.format(root=root))
    out = tmp_path_factory.mktemp("runs") / "small"
    run.run(load.load(str(recipe)), out, progress.for_terminal())
    return out


def section(sheet: sheets.Sheet, title: str) -> sheets.Section:
    return next(s for s in sheet.sections if s.title == title)


def test_what_is_in_a_run(small_run: Path) -> None:
    sheet = inspection.sheet(small_run, shown=2)
    documents = read_records(next(small_run.glob("*-documents")) / "documents.parquet", Document)
    (web,) = section(sheet, "Documents").rows[:1]
    assert web[:3] == ("web", "CC0", "en")
    kinds = {row[0]: row for row in section(sheet, "Samples").rows}
    assert kinds["comparison"][2] == "procedural" and "cloze" in kinds
    rejected = {
        (r[0].split("-")[1], r[2]): r[3] for r in section(sheet, "What was rejected, and why").rows
    }  # type: ignore[union-attr]
    assert rejected["documents", "exact duplicate"] == 1
    assert rejected["documents", "bad encoding"] == 1
    assert rejected["textbook", "math"] > 3  # the teacher's slips
    lengths = section(sheet, "Lengths")
    assert "tokens" in lengths.note and {"web", "comparison"} <= {r[1] for r in lengths.rows}
    read = section(sheet, "Documents to read").blocks
    assert len(read) == 2 and read[0].text in {d.text for d in documents}
    assert sheets.text(inspection.sheet(small_run, seed=0, shown=2)) == sheets.text(sheet)
    assert section(inspection.sheet(small_run, shown=2, seed=9), "Samples to read").blocks != (
        section(sheet, "Samples to read").blocks
    )


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_the_terminal(small_run: Path, width: int) -> None:
    shown = CliRunner().invoke(app, ["data", "inspect", str(small_run), "--width", str(width)])
    assert shown.exit_code == 0, shown.output
    assert max(map(len, shown.output.splitlines())) <= width


def test_a_sample_is_followed_back_to_its_document_and_forward_to_its_tokens(
    small_run: Path,
) -> None:
    samples = read_records(next(small_run.glob("*-textbook")) / "samples.parquet", Sample)
    sample = next(s for s in samples if s.kind == "cloze")
    shown = CliRunner().invoke(app, ["data", "trace", sample.id[:12], "--in", str(small_run)])
    assert shown.exit_code == 0, shown.output
    assert f"document {sample.parents[0]}" in shown.output and "✓ exact" in shown.output
    sheet = tracing.sheet(sample.id, [small_run])
    into = {row[0]: row for row in section(sheet, "What it went into").rows}
    assert set(into) == {"tokenizer", "shards"}
    assert "tokens are there" in str(into["shards"][3]) and "times" in str(into["shards"][3])


def test_a_document_that_was_left_out_went_into_nothing_after(small_run: Path) -> None:
    every = read_records(next(small_run.glob("*-documents")) / "documents.parquet", Document)
    part = {
        d.id for d in read_records(next(small_run.glob("*-part")) / "documents.parquet", Document)
    }
    out = next(d for d in every if d.id not in part)
    kept = next(d for d in every if d.id in part)
    into = {r[0]: r for r in section(tracing.sheet(out.id, [small_run]), "What it went into").rows}
    assert "part" not in into and "not drawn" in str(into["shards"][3])
    into = {r[0]: r for r in section(tracing.sheet(kept.id, [small_run]), "What it went into").rows}
    assert "part" in into and "tokens are there" in str(into["shards"][3])
    made = section(tracing.sheet(kept.id, [small_run]), "What was made of it")
    assert any(row[1] == "cloze" for row in made.rows)


def test_a_corpus_of_one(tmp_path: Path) -> None:
    one = Document(text="Only this.", source="web", meta={"name": "it"})
    write_records(tmp_path / "one.parquet", [one], Document)
    sheet = inspection.sheet(tmp_path / "one.parquet")
    assert section(sheet, "Documents").rows == [("web", "(not stated)", "en", 1, 10, 1.0)]
    assert "words" in section(sheet, "Lengths").note
    assert "Only this." in sheets.text(sheet, 80)
    back = section(tracing.sheet(one.id, [tmp_path / "one.parquet"]), "Where it is from")
    assert "no parents" in back.note and back.blocks[0].text == "Only this."


def test_texts_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "First."}\n{"text": "Second.", "licence": "MIT"}\n')
    for path in (tmp_path, tmp_path / "a.jsonl"):
        rows = section(inspection.sheet(path), "Documents").rows
        assert {row[1] for row in rows} == {"(not stated)", "MIT"}


def test_what_cannot_be_looked_into_is_said(tmp_path: Path, small_run: Path) -> None:
    with pytest.raises(PhikitError, match="no records are here"):
        inspection.sheet(tmp_path)
    with pytest.raises(PhikitError, match="there is nothing here"):
        inspection.sheet(tmp_path / "absent")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(PhikitError, match="not a readable Parquet file"):
        inspection.sheet(tmp_path)
    with pytest.raises(PhikitError, match="no record"):
        tracing.sheet("ffffffffffffffffff", [small_run])
    with pytest.raises(PhikitError, match="ids begin with"):
        tracing.sheet("", [small_run])


def test_a_synthetic_sample_is_followed_to_its_prompts_and_replies(tmp_path: Path) -> None:
    text = " ".join(SENTENCE.format(a, b) for a in NOUNS for b in NOUNS[:2])
    seed = Document(text=text, source="acquired", meta={"name": "mill"})
    write_records(tmp_path / "seeds" / "documents.parquet", [seed], Document)
    server = ChatServer()
    try:
        job = synth_runs.Job(("reading-summary", "excerpt-tags"), (tmp_path / "seeds",),
                             server.url, "m", 6)  # fmt: skip
        synth_runs.run(job, tmp_path / "c")
    finally:
        server.close()
    sample = read_records(tmp_path / "c" / "samples.parquet", Sample)[0]
    sheet = tracing.sheet(sample.id, [tmp_path / "c", tmp_path / "seeds"])
    titles = [b.title.split()[0] for b in section(sheet, "Where it is from").blocks]
    assert titles[:2] == ["sample", "document"] and {"prompt", "reply"} <= set(titles)
    prompts = [b for b in section(sheet, "Where it is from").blocks if b.title.startswith("prompt")]
    assert "[user]" in prompts[0].text
    alone = tracing.sheet(sample.id, [tmp_path / "c"])
    assert any("not among" in b.note for b in section(alone, "Where it is from").blocks)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no chromium on this machine")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits_and_escapes(
    browser: Any, small_run: Path, tmp_path: Path, width: int
) -> None:
    evil = Document(text="<script>window.pwned = 1</script>" * 9, source="<b>web</b>")
    write_records(tmp_path / "evil.parquet", [evil], Document)
    for path in (small_run, tmp_path / "evil.parquet"):
        page = browser.new_page(viewport={"width": width, "height": 900})
        said: list[str] = []
        page.on("console", lambda m, said=said: said.append(m.text))
        page.on("pageerror", lambda e, said=said: said.append(str(e)))
        page.goto(sheets.write(inspection.sheet(path), tmp_path / "p.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.pwned") is None and said == []
        page.close()
