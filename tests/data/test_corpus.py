"""A corpus in shards: the same whatever the shards, the order, the workers, and however killed."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from phikit.data.corpus.build import Job, build, documents
from phikit.data.corpus.clean import address_key
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.units import Here, Processes, Unit
from phikit.data.readers import ReaderConfig, read
from phikit.errors import PhikitError
from phikit.records import Document, Sample, write_records

QUESTION = (
    "A farmer has seventeen sheep and all but nine of them run away over the hill at dawn; how "
    "many sheep are left standing in the field when the sun goes down again?"
)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    """Real documents, some with a near copy or an exact one, some with an evaluation item."""
    rng = random.Random(0)
    found = (d for d in read(ReaderConfig()) if isinstance(d, Document) and len(d.text) > 400)
    result = []
    for number, document in enumerate(islice(found, 160)):
        row = {
            "text": document.text,
            "source": document.source,
            "url": f"https://a.example/{number}",
        }
        result.append(row)
        words = document.text.split(" ")
        if number % 8 == 0 and len(words) > 60:
            words[rng.randrange(len(words))] = "altered"
            result.append({**row, "text": " ".join(words), "url": f"https://b.example/{number}"})
        if number % 16 == 0:
            result.append({**row, "url": f"https://c.example/{number}"})
        if number % 25 == 0:
            result.append({**row, "text": f"{document.text}\n{QUESTION}\n", "url": ""})
    return result


def write(folder: Path, rows: list[dict[str, str]], parts: int) -> Path:
    folder.mkdir()
    for part in range(parts):
        lines = "".join(json.dumps(row) + "\n" for row in rows[part::parts])
        (folder / f"{part}.jsonl").write_text(lines)
    return folder


def job(folder: Path, shard_bytes: int = 60_000, **more) -> Job:
    return Job((folder,), CorpusConfig(shard_bytes=shard_bytes), **more)


def quiet(step: str, done: int, total: int) -> None:
    return


def items(folder: Path) -> Path:
    message = ({"role": "user", "content": QUESTION},)
    write_records(
        folder / "items.parquet", [Sample(kind="item", source="e", messages=message)], Sample
    )
    return folder / "items.parquet"


def fingerprint(out: Path) -> str:
    """Of every document that was kept, in order, and of every line about those that were not."""
    digest = hashlib.sha256()
    for document in documents(out):
        digest.update(document.id.encode())
    for lines in ("1-clean/*/rejected", "4-kept/*/rejected", "4-kept/*/contamination"):
        for path in sorted(out.glob(f"{lines}.jsonl")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def test_shards_and_workers_change_nothing(tmp_path, rows) -> None:
    folder, given = write(tmp_path / "in", rows, 3), items(tmp_path)
    one = build(job(folder, 10**9, items=given), tmp_path / "one", Here(), quiet)
    many = build(job(folder, 20_000, items=given), tmp_path / "many", Processes(2), quiet)
    assert one["shards"] == 1 and many["shards"] > 10
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "many")
    assert {k: v for k, v in one.items() if k != "shards"} == {
        k: v for k, v in many.items() if k != "shards"
    }


def test_files_and_their_order_change_no_text(tmp_path, rows) -> None:
    build(job(write(tmp_path / "in", rows, 3)), tmp_path / "a", Here(), quiet)
    shuffled = random.Random(1).sample(rows, len(rows))
    build(job(write(tmp_path / "other", shuffled, 5)), tmp_path / "b", Here(), quiet)
    texts = [sorted(d.text for d in documents(tmp_path / name)) for name in "ab"]
    assert texts[0] == texts[1]


def test_planted_copies_and_items_go_and_say_why(tmp_path, rows) -> None:
    out = tmp_path / "out"
    report = build(job(write(tmp_path / "in", rows, 2), items=items(tmp_path)), out, Here(), quiet)
    kept = list(documents(out))
    assert len({d.text for d in kept}) == len(kept)
    assert not any("seventeen sheep" in d.text for d in kept)
    lines = [json.loads(line) for path in out.glob("4-kept/*/contamination.jsonl")
             for line in path.read_text().splitlines()]  # fmt: skip
    assert len(lines) >= 5 and all("seventeen sheep" in line["item_text"] for line in lines)
    assert all("seventeen sheep" in line["text"] for line in lines)
    texts = {d.text for d in kept}
    first = {row["url"]: row["text"] for row in rows if row["url"].startswith("https://a.")}
    pairs = [(first[row["url"].replace("b.", "a.", 1)], row["text"]) for row in rows
             if row["url"].startswith("https://b.")]  # fmt: skip
    assert not [pair for pair in pairs if min(pair, key=len) in texts], "the shorter one stays"
    # a few longer ones go too: below a copy with the question in it, or like another document;
    # how many, the documentation of this Python decides
    assert sum(max(pair, key=len) in texts for pair in pairs) > 0.7 * len(pairs)
    assert sum(n for r, n in report["rejected"].items() if r.endswith("duplicate")) > 20


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("http://www.a.example/x/?utm_source=b", "https://A.example/x#top", True),
        ("http://a.example/?a=1&b=2&fbclid=z", "http://a.example?b=2&a=1", True),
        ("http://a.example/?refid=1", "http://a.example/?refid=2", False),
        ("http://a.example/thread.php?123", "http://a.example/thread.php?456", False),
        ("http://a.example:8000/", "http://a.example:9000/", False),
        ("http://a.example/#!/one", "http://a.example/#!/two", False),
        ("http://a.example/One", "http://a.example/one", False),
    ],
)
def test_what_of_an_address_counts(one, other, same) -> None:
    assert (address_key(one) == address_key(other)) is same


def test_of_one_address_the_longest_stays(tmp_path) -> None:
    rng = random.Random(2)
    words = ["the", "of", "and", "is", *(f"word{chr(97 + i % 26)}{i}" for i in range(500))]
    texts = [" ".join(rng.choices(words, k=80 + 10 * n)) for n in range(3)]
    urls = [
        "http://www.A.example/x/?utm_source=z#part",
        "https://a.example/x",
        "https://a.example/y",
    ]
    rows = [{"text": t, "source": "web", "url": u} for t, u in zip(texts, urls, strict=True)]
    config = CorpusConfig.model_validate({"filters": {"prose": ["length"]}, "outliers": False})
    folder = write(tmp_path / "in", rows, 1)
    build(Job((folder,), config), tmp_path / "out", Here(), quiet)
    assert [d.text for d in documents(tmp_path / "out")] == texts[1:]


def test_another_corpus_or_another_process_in_the_folder_is_refused(tmp_path, rows) -> None:
    folder, out = write(tmp_path / "in", rows[:20], 1), tmp_path / "out"
    build(job(folder), out, Here(), quiet)
    with pytest.raises(PhikitError, match="other settings"):
        build(job(folder, 1000), out, Here(), quiet)
    with pytest.raises(PhikitError, match="no file that can be read"):
        (tmp_path / "empty").mkdir()
        build(job(tmp_path / "empty"), tmp_path / "none", Here(), quiet)


def test_token_ids_are_those_of_the_documents_each_once(tmp_path, rows) -> None:
    from phikit.chat.templates import NANO_SPECIAL
    from phikit.chat.tokenizer import train_bpe
    from phikit.data.shards import Shards

    tokenizer = train_bpe([row["text"] for row in rows[:50]], 512, NANO_SPECIAL)
    tokenizer.save(tmp_path / "tokenizer")
    out = tmp_path / "out"
    given = job(write(tmp_path / "in", rows, 2), tokenizer=tmp_path / "tokenizer")
    report = build(given, out, Here(), quiet)
    shards = Shards(Path(report["training"]))
    written = sorted(tokenizer.decode(ids[:-1].tolist()) for ids in shards.documents())
    assert written == sorted(d.text for d in documents(out))
    assert report["mixture"]["tokens"] == len(shards.tokens)


def fail_once(folder: Path, witness: str) -> None:
    """A unit that kills its process the first time."""
    (folder / "half.txt").write_text("half")
    if not Path(witness).exists():
        Path(witness).write_text("was here")
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "whole.txt").write_text("whole")


def fail_always(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def unit(name: str, folder: Path, **arguments) -> Unit:
    return Unit(f"test_corpus:{name}", folder, arguments)


def test_a_killed_worker_has_its_unit_done_again_and_not_for_ever(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "step").mkdir()
    workers = Processes(2)
    units = [
        unit("fail_once", tmp_path / "step" / str(n), witness=str(tmp_path / f"w{min(n, 1)}"))
        for n in range(3)
    ]
    workers.run(units, lambda done, total: None)
    assert all((u.folder / "whole.txt").exists() for u in units)
    with pytest.raises(PhikitError, match="killed 3 times"):
        workers.run([unit("fail_always", tmp_path / "step" / "x")], lambda done, total: None)
    assert not (tmp_path / "step" / "x").exists()
    workers.close()


@pytest.mark.slow
def test_killed_at_random_instants_it_ends_with_the_same_corpus(tmp_path, rows) -> None:
    folder = write(tmp_path / "in", rows, 3)
    build(job(folder, 30_000), tmp_path / "whole", Here(), quiet)
    command = [sys.executable, "-m", "phikit", "data", "build", str(folder), "--out",
               str(tmp_path / "out"), "--set", "shard_bytes=30000", "--workers", "2"]  # fmt: skip
    rng, kills, begun = random.Random(time.time_ns()), 0, time.monotonic()
    other = [str(tmp_path / "other") if c == str(tmp_path / "out") else c for c in command]
    subprocess.run(other, check=True, capture_output=True)
    unkilled = time.monotonic() - begun
    for attempt in range(40):
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # later kills come later, so that it ends
            share = rng.uniform(0.2, 0.6) + 0.2 * max(0, attempt - 2)
            assert running.wait(timeout=share * unkilled) == 0
            break
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
            kills += 1
    assert kills >= 2
    assert fingerprint(tmp_path / "out") == fingerprint(tmp_path / "whole")


def test_a_full_disk_stops_clearly_and_it_goes_on(tmp_path, rows) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)],
                             capture_output=True)  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        folder = write(tmp_path / "in", rows, 3)
        with pytest.raises(PhikitError, match="the disk is full") as caught:
            build(job(folder), small / "out", Here(), quiet)
        assert "what was done stays done" in caught.value.hint
        done = len(list((small / "out" / "1-clean").glob("[0-9]*")))
        subprocess.run(["mount", "-o", "remount,size=30m", str(small)], check=True)
        before = {p.name: p.stat().st_mtime_ns for p in (small / "out" / "1-clean").glob("[0-9]*")}
        build(job(folder), small / "out", Here(), quiet)
        after = {p.name: p.stat().st_mtime_ns for p in (small / "out" / "1-clean").glob("[0-9]*")}
        assert done >= 1 and before.items() <= after.items()
        build(job(folder), tmp_path / "whole", Here(), quiet)
        assert fingerprint(small / "out") == fingerprint(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)
