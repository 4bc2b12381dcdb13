"""A corpus by declared types: its accounts, its budget, kills at random instants, its report."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer
from typer.testing import CliRunner

from phikit import synth_runs
from phikit.cli import app
from phikit.errors import PhikitError
from phikit.files import cache_folder
from phikit.records import Document, Sample, read_records, write_records
from phikit.reporting import corpora, sheets
from phikit.synth.seeds import Seed, SeedConfig, Seeds, excerpts, of_documents
from phikit.synth.stage_declared import DECLARED, DeclaredConfig
from phikit.verify.base import VERIFIERS
from phikit.verify.exact import ExactVerifier

HERE = Path(__file__).parent
TYPES = ("school-word-problem", "excerpt-tags", "reading-summary", "code-explain", "ask-back")
FILES = ("samples.parquet", "rejected.parquet", "outcomes.jsonl", "requests.jsonl")


def documents() -> list[Document]:
    prose = "The old mill stands by the river and its wheel still turns every spring. "
    found = [
        Document(text=f"Chapter {i}.\n\n" + prose * 8, source="acquired", meta={"name": f"c{i}"})
        for i in range(6)
    ]
    code = 'def double{0}(n):\n    """Twice n."""\n    twice = {0} * n\n    return twice + n\n'
    return [*found, *(Document(text=code.format(i), source="code") for i in range(2, 8))]


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    write_records(tmp_path / "seeds" / "documents.parquet", documents(), Document)
    return tmp_path / "seeds"


@pytest.fixture
def server() -> Iterator[ChatServer]:
    made = ChatServer()
    yield made
    made.close()


def run(server: ChatServer, seeds: Path, out: Path, *settings: str, count: int = 60) -> dict:
    given = ("teacher.in_flight=64", "teacher.pause=0.01", *settings)
    job = synth_runs.Job(TYPES, (seeds,), server.url, "m", count, settings=given)
    return synth_runs.run(job, out)["summary"]


def outcomes(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]


def test_every_sample_asked_for_is_accounted_for(
    server: ChatServer, seeds: Path, tmp_path: Path
) -> None:
    server.faulty = 0.3
    summary = run(server, seeds, tmp_path / "c", "teacher.timeout=1.5")
    rows = outcomes(tmp_path / "c")
    assert len({(r["kind"], r["index"]) for r in rows}) == len(rows) == summary["asked"]
    assert all(r["reason"] for r in rows if r["status"] != "accepted")
    accepted = read_records(tmp_path / "c" / "samples.parquet", Sample)
    assert {s.id for s in accepted} == {r["sample"] for r in rows if r["status"] == "accepted"}
    assert all(v.passed for s in accepted for v in s.verdicts)
    for kind, wanted in summary["wanted"].items():
        assert sum(s.kind == kind for s in accepted) <= wanted
    tried = Counter(r["kind"] for r in rows)
    lacking = [k for k, n in summary["wanted"].items() if tried[k] < 4 * n]
    assert all(sum(s.kind == k for s in accepted) == summary["wanted"][k] for k in lacking)
    rejected = read_records(tmp_path / "c" / "rejected.parquet", Sample)
    assert any(not v.passed for s in rejected for v in s.verdicts)
    # lineage: the seed's document, and replies that are in the store
    store = {
        f"{r['request']}.{r['attempt']}"
        for r in map(json.loads, (tmp_path / "c" / "replies.jsonl").read_text().splitlines())
    }
    ids = {d.id for d in documents()}
    for sample in accepted:
        assert set(sample.parents) <= ids | store and set(sample.parents) & store


def test_the_corpus_does_not_depend_on_the_order_of_answers(
    server: ChatServer, seeds: Path, tmp_path: Path
) -> None:
    run(server, seeds, tmp_path / "a")
    paid = server.paid.total()
    run(server, seeds, tmp_path / "b", "teacher.in_flight=3")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert server.paid.total() == 2 * paid
    run(server, seeds, tmp_path / "a")  # done: nothing is asked
    run(server, seeds, tmp_path / "a", count=80)  # more of the same: only that is paid for
    assert server.paid.total() > 2 * paid and max(server.paid.values()) == 2
    with pytest.raises(PhikitError, match="not empty"):
        run(server, seeds, seeds)


def test_a_budget_stops_cleanly_and_a_larger_one_goes_on(
    server: ChatServer, seeds: Path, tmp_path: Path
) -> None:
    first = run(server, seeds, tmp_path / "c", "teacher.max_total_tokens=20000")
    assert first["prompt_tokens"] + first["completion_tokens"] <= 20000
    assert first["unsent"] > 0
    again = run(server, seeds, tmp_path / "c", "teacher.max_total_tokens=0")
    assert "unsent" not in again and again["accepted"] > first["accepted"]
    run(server, seeds, tmp_path / "whole")
    for name in ("samples.parquet", "outcomes.jsonl"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_killed_at_twenty_random_instants_it_is_the_same_corpus(
    seeds: Path, tmp_path: Path
) -> None:
    port = tmp_path / "port"
    arguments = [sys.executable, str(HERE / "chat_server.py"), str(port), "0.2", "0.08"]
    server = subprocess.Popen(arguments)
    try:
        while not port.exists() or not port.read_text():
            time.sleep(0.05)
        out, url = tmp_path / "killed", port.read_text()
        command = [sys.executable, str(HERE / "kill_driver.py"), str(out), url, str(seeds)]
        killed = subprocess.run([*command, "20", "3"], check=True, capture_output=True, text=True)
        assert int(killed.stdout) == 20, "the job was done before the last kill"
        whole = subprocess.run(
            [*command[:2], str(tmp_path / "whole"), url, str(seeds), "0", "3"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert whole.returncode == 0
    finally:
        server.kill()
    stored = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    ids = [(r["request"], r["attempt"]) for r in stored]
    assert len(ids) == len(set(ids))  # what was stored was never asked again
    assert {r["status"] for r in outcomes(out)} >= {"accepted", "rejected"}
    for name in FILES:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_seeds_are_each_used_once_before_any_is_used_again() -> None:
    seeds = Seeds({"document": [Seed(str(i), str(i)) for i in range(17)]})
    drawn = [seeds.draw("document", "t", "s", i).id for i in range(34)]
    assert len(set(drawn[:17])) == len(set(drawn[17:])) == 17
    assert drawn != [seeds.draw("document", "other", "s", i).id for i in range(34)]
    assert seeds.draw("none", "t", "s", 0) == Seed()
    with pytest.raises(PhikitError, match="starts from a code"):
        seeds.draw("code", "t", "s", 0)


def test_excerpts_are_whole_paragraphs_where_they_fit() -> None:
    text = "\n\n".join(" ".join(f"p{i}w{j}" for j in range(30)) for i in range(5))
    settings = SeedConfig(excerpt_words=70, least_words=20)
    found = excerpts(text, settings)
    assert [len(e.split()) for e in found] == [60, 60, 30]
    assert " ".join(" ".join(found).split()) == " ".join(text.split())
    assert [len(e.split()) for e in excerpts("w " * 150, settings)] == [70, 70]


def test_functions_are_seeds_with_their_recorded_behaviour() -> None:
    found = of_documents(documents(), SeedConfig(), {"function", "code", "document"})
    (first, *_) = found.by_kind["function"]
    assert "assert double2(7) == 21" in first.tests and '"""' not in first.text
    assert len(found.by_kind["code"]) == 6 and len(found.by_kind["document"]) == 6


def test_the_report_of_a_corpus(server: ChatServer, seeds: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "c")
    call = CliRunner().invoke
    arguments = ["synth", "run", *TYPES, "--seeds", str(seeds), "--teacher", server.url,
                 "--name", "m", "--count", "40", "--out", out,
                 "--set", "teacher.prompt_price=1",
                 "--set", "teacher.completion_price=4"]  # fmt: skip
    shown = call(app, arguments).output
    assert "Yield by type" in shown and "school-word-problem" in shown
    for width in (80, 120):
        page = call(app, ["synth", "report", out, "--width", str(width)]).output
        assert max(map(len, page.splitlines())) <= width
        for word in ("What was lost, and why", "Skills", "Topics", "Variety", "money"):
            assert word in page
    sheet = corpora.sheet(Path(out))
    figures = dict(sheet.figures)
    rows = outcomes(tmp_path / "c")
    assert figures["asked"] == len(rows)
    table = next(s for s in sheet.sections if s.title == "Yield by type")
    assert sum(row[3] for row in table.rows) == figures["accepted"]  # type: ignore[misc]
    lost = next(s for s in sheet.sections if s.title.startswith("What was lost"))
    assert sum(row[2] for row in lost.rows) == len(rows) - figures["accepted"]  # type: ignore
    html = call(app, ["synth", "report", out, "--html", str(tmp_path / "r.html")]).output
    assert "<h2>Skills</h2>" in Path(html.strip()).read_text()


def test_a_sheet_escapes_what_it_shows() -> None:
    evil = "<script>alert(1)</script> [bold]"
    sheet = sheets.Sheet(evil, "", [], [sheets.Section(evil, "", ("a",), [(evil,)])])
    assert "<script>" not in sheets.html(sheet)
    assert "[bold]" in sheets.text(sheet)


def test_a_full_disk_is_a_clear_stop_and_it_goes_on(
    server: ChatServer,
    seeds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flush, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PhikitError, match="the disk is full"):
        run(server, seeds, tmp_path / "c", count=20)
    assert not (tmp_path / "c" / "stage.json").exists()
    gc.collect()
    assert not [r for r in caplog.records if r.name == "asyncio"]  # errors that nobody took
    monkeypatch.undo()
    run(server, seeds, tmp_path / "c", count=20)
    run(server, seeds, tmp_path / "whole", count=20)
    for name in ("samples.parquet", "outcomes.jsonl"):
        assert (tmp_path / "c" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


PICKY = """\
from phikit.verify.base import register
from phikit.verify.verdicts import verdict

@register("picky")
class Picky:
    name = "picky"

    def verify(self, items):
        return [verdict("picky", {judged}, "as it is") for problem, text in items]
"""
MINE = """\
name: mine
purpose: A type of one's own, for the test.
domain: tests
seed: document
steps:
- name: draft
  prompt: Write something about {{{{ seed }}}}.
  reply: {{title: string, body: string}}
result:
  messages:
  - {{role: user, content: "{{{{ draft.title }}}}"}}
  - {{role: assistant, content: "{{{{ draft.body }}}}"}}
  answer: "{{{{ draft.title }}}}"
validators: {{verifier: {verifier}, confirm: "{confirm}"}}
"""


@pytest.mark.parametrize("confirm", ["", "{{ draft.title }}"])
def test_a_verifier_that_fails_ends_the_run_and_what_was_paid_for_is_kept(
    confirm: str, server: ChatServer, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("types").mkdir()
    Path("types", "mine.yaml").write_text(MINE.format(verifier="picky", confirm=confirm))
    known = dict(VERIFIERS)

    def write(judged: str) -> dict:
        Path("picky.py").write_text(PICKY.format(judged=judged))
        VERIFIERS.clear()  # as in a process of its own
        VERIFIERS.update(known)
        job = synth_runs.Job(
            ("mine",), (seeds,), server.url, "m", 20, Path("types"), verifiers=("picky.py:picky",)
        )
        return synth_runs.run(job, tmp_path / "c")["summary"]

    try:
        with pytest.raises(PhikitError, match=r"'picky' fails on .*picky\.py:9.*AttributeError"):
            write("text.contians('river')")
        assert not (tmp_path / "c" / "stage.json").exists()
        paid = server.paid.total()
        assert write("'e' in text")["accepted"] > 0
    finally:
        VERIFIERS.clear()
        VERIFIERS.update(known)
    assert paid >= 20 and set(server.paid.values()) == {1}


def test_an_error_leaves_no_answer_behind_that_was_on_the_wire(
    server: ChatServer, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.delay = 0.4
    (tmp_path / "types").mkdir()
    (tmp_path / "types" / "mine.yaml").write_text(MINE.format(verifier="exact", confirm=""))
    settings = ("teacher.in_flight=16", 'types={"mine":1,"school-word-problem":20}')
    job = synth_runs.Job(
        (), (seeds,), server.url, "m", 63, tmp_path / "types", settings=settings
    )  # fmt: skip

    def away(self: object, items: object) -> None:
        raise PhikitError("the verifier cannot judge")

    with monkeypatch.context() as patch:
        patch.setattr(ExactVerifier, "verify", away)
        with pytest.raises(PhikitError, match="cannot judge"):
            synth_runs.run(job, tmp_path / "c")
    begun, stored = server.begun, (tmp_path / "c" / "replies.jsonl").read_text().splitlines()
    assert 16 < len(stored) == server.paid.total() == begun <= 48  # of 63: the rest was not begun
    server.delay = 0.0
    synth_runs.run(job, tmp_path / "c")
    assert server.paid.total() > begun and set(server.paid.values()) == {1}


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_waits_for_what_is_on_the_wire_and_a_second_one_does_not(
    presses: int, server: ChatServer, seeds: Path, tmp_path: Path
) -> None:
    server.delay = 3 if presses == 1 else 60
    command = [sys.executable, "-m", "phikit", "synth", "run", "excerpt-tags", "--seeds",
               str(seeds), "--teacher", server.url, "--name", "m", "--count", "40", "--out",
               str(tmp_path / "c"), "--set", "teacher.in_flight=8"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while server.begun < 8:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    if presses == 2:
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and "run the same command again" in errors
    assert "calls on the wire (8)" in errors
    assert "Traceback" not in errors
    stored = (tmp_path / "c" / "replies.jsonl").read_text().splitlines()
    assert server.begun == 8 and len(stored) == server.paid.total() == (8 if presses == 1 else 0)


@pytest.mark.parametrize("confirm", ["", "{{ draft.body }}"])
def test_a_sample_that_cannot_be_judged_is_rejected_with_the_reason(
    confirm: str, server: ChatServer, seeds: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "types"
    folder.mkdir()
    (folder / "mine.yaml").write_text(MINE.format(verifier="instructions", confirm=confirm))
    job = synth_runs.Job(("mine",), (seeds,), server.url, "m", 3, folder)
    summary = synth_runs.run(job, tmp_path / "c")["summary"]
    assert summary["rejected"] == summary["asked"] == 12
    (said,) = {r["reason"] for r in outcomes(tmp_path / "c")}
    assert said == ("confirm" if confirm else "instructions")
    assert all("no list of demands" in r["detail"] for r in outcomes(tmp_path / "c"))


@pytest.mark.slow
def test_a_model_in_this_process_writes(seeds: Path, tmp_path: Path) -> None:
    if not (cache_folder() / "smollm2" / "config.json").exists():
        pytest.skip("smollm2 was not fetched")
    arguments = ["synth", "run", "excerpt-tags", "--seeds", str(seeds), "--teacher", "smollm2",
                 "--count", "2", "--out", str(tmp_path / "c"), "--set", "attempts=1",
                 "--set", "longest_reply=80", "--set", "teacher.rewrites=0"]  # fmt: skip
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    rows = outcomes(tmp_path / "c")
    assert len(rows) == 2 and all(r["replies"] for r in rows)
    assert {r["status"] for r in rows} <= {"accepted", "alike", "rejected"}
    replies = [json.loads(s) for s in (tmp_path / "c" / "replies.jsonl").read_text().splitlines()]
    assert all(r["text"].lstrip().startswith("{") for r in replies)  # held to the schema


def test_a_recipe_s_stage_depends_on_types_and_models_outside_the_run(tmp_path: Path) -> None:
    types, model = str(tmp_path / "types"), str(tmp_path / "model")
    settings = DeclaredConfig(folder=types, local=model)
    assert list(DECLARED.reads(settings)) == [types, model]
    assert list(DECLARED.reads(DeclaredConfig())) == []
