"""Cleaning and packing text, beside datatrove, text-dedup and lm-eval.

Real text: the sources and documents of this Python's library and of the packages installed beside
it, cut into pieces of about a thousand characters. One in twenty is followed, somewhere, by a copy
with a word changed; one in two hundred holds a question of the packaged benchmarks. Times are of
one core (the processor's, not the clock's), reading the JSON lines included on both sides; peers
work on a part of the pieces, being slower, and rates are compared. Runs are interleaved, and the
medians of `--repeats` count.

    python benchmarks/data.py --peers .venv-peers [--documents 200000] [--sample 12000]
                              [--only NAME]
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.data.corpus.build import Job, build, documents
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.units import Here
from phikit.data.decontaminate import Decontaminator
from phikit.data.filter_steps import FilteringConfig
from phikit.data.pack import pack
from phikit.memory import PeakMemory

PIECE = 1000
NAMES = ("deduplicate", "decontaminate", "tokenise", "all")
QUESTIONS = ("prompt", "question", "problem_text", "text")
Row = dict[str, str]


def pieces(count: int, rng: random.Random) -> Iterator[str]:
    """Pieces of real text, files in a fixed shuffled order."""
    root = Path(sysconfig.get_path("stdlib"))
    folders = {root, Path(sysconfig.get_path("purelib"))}
    files = sorted(
        {p for f in folders for s in ("py", "md", "rst", "txt") for p in f.rglob(f"*.{s}")}
    )
    rng.shuffle(files)
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        except (UnicodeDecodeError, OSError):
            continue
        piece = ""
        for line in lines:
            piece += line[:PIECE]
            if len(piece) >= PIECE:
                yield piece
                piece = ""
                count -= 1
                if not count:
                    return


def planted(texts: list[str], items: list[str], rng: random.Random) -> list[Row]:
    """The pieces with altered copies and questions among them."""
    rows: list[Row] = []
    for number, text in enumerate(texts):
        rows.append({"id": f"d{number}", "text": text})
        if number % 20 == 0 and len(text.split()) > 60:
            words = text.split(" ")
            words[rng.randrange(len(words))] = "altered"
            rows.append({"id": f"copy-{number}", "text": " ".join(words)})
        if number % 200 == 0:
            rows.append({"id": f"leak-{number}", "text": f"{text}\n{rng.choice(items)}\n{text}"})
    return rows


def packaged_items(folder: Path) -> list[str]:
    """The questions in the wheels of a folder, of 13 words or more."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if isinstance(inner, str) and key in QUESTIONS and 13 <= len(inner.split()) < 400:
                    found.add(inner)
                elif isinstance(inner, dict | list):
                    walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if name.endswith((".jsonl", ".jsonl.gz")) and "model_answer" not in name:
                    data = archive.read(name)
                    data = gzip.decompress(data) if name.endswith(".gz") else data
                    for line in data.splitlines():
                        walk(json.loads(line or b"0"))
                elif name.endswith("v0.json"):
                    walk(json.loads(archive.read(name)))
    return sorted(found)


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def our_dedup(path: Path, work: Path) -> set[str]:
    """What `phikit data build` does of it: read, compare, write what stays; no other filter."""
    config = CorpusConfig(
        filters=FilteringConfig(prose=(), code=()), by_url=False, outliers=False, shard_bytes=10**8
    )
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out = Path(folder)
        build(Job((path,), config), out, Here(), lambda *_: None)
        kept = {int(d.meta["name"].rpartition(":")[2]) for d in documents(out)}  # FILE:LINE
    return {row["id"] for line, row in enumerate(read(path), 1) if line not in kept}


def our_decontamination(path: Path, work: Path) -> Callable[[], set[str]]:
    items = [(row["id"], row["text"]) for row in read(work / "items.jsonl")]
    decontaminator = Decontaminator(items)

    def judge() -> set[str]:
        suspects: list[Row] = []
        with path.open() as lines:
            while rows := [json.loads(line) for line in islice(lines, 2000)]:
                numbers = decontaminator.count([row["text"] for row in rows])
                suspects += [rows[n] for n in numbers]
        decontaminator.settle()
        found = decontaminator.check_all([row["text"] for row in suspects])
        return {suspects[n]["id"] for n, f in found.items() if f.verdict == "contaminated"}

    return judge


def our_tokens(path: Path, work: Path) -> Callable[[], set[str]]:
    tokenizer = Tokenizer.load(work)

    def run() -> set[str]:
        texts = [row["text"] for row in read(path)]
        end = np.uint32(tokenizer.special["<|endoftext|>"])
        examples = [(np.append(ids, end), None) for ids in tokenizer.encode_arrays(texts)]
        packed = pack(examples, 4096, 0)
        packed.inputs.tofile(work / "packed.bin")
        return set()

    return run


def timed(run: Callable[[], set[str]]) -> tuple[float, set[str]]:
    begun = time.process_time()
    removed = run()
    return time.process_time() - begun, removed


def alone(what: str, path: Path, work: Path) -> tuple[float, set[str], float]:
    """As `timed`, of all pieces, in a process of its own; and its peak memory in GiB."""
    dedup = partial(our_dedup, path, work)
    with PeakMemory() as peak:  # getrusage would tell of the process that started this one, too
        run = our_decontamination(path, work) if what == "decontaminate" else dedup
        seconds, removed = timed(run)
    return seconds, removed, peak.bytes / 2**30


def peer(python: Path, what: str, path: Path, work: Path) -> tuple[float, set[str]]:
    with tempfile.TemporaryDirectory(dir=work) as scratch:
        for name in ("items.jsonl", "tokenizer.json"):
            (Path(scratch) / name).symlink_to(work / name)
        script = Path(__file__).parent / "data_peers" / "run.py"
        done = subprocess.run(
            [python, script, what, path, scratch], capture_output=True, text=True,
            env={"TOKENIZERS_PARALLELISM": "false", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
                 "RAYON_NUM_THREADS": "1", "HOME": str(work)},
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"{what}: the peer failed:\n{done.stderr[-2000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        return result["seconds"], set(result["removed"])


def found_of(removed: set[str], rows: list[Row], kind: str) -> set[str]:
    """Which of those planted were found: a copy, or the piece it was made from."""
    numbers = [row["id"].partition("-")[2] for row in rows if row["id"].startswith(f"{kind}-")]
    return {
        n for n in numbers if f"{kind}-{n}" in removed or (kind == "copy" and f"d{n}" in removed)
    }


def recall(removed: set[str], rows: list[Row], kind: str) -> float:
    """The part of what was planted that was found."""
    planted = sum(row["id"].startswith(f"{kind}-") for row in rows)
    return len(found_of(removed, rows, kind)) / planted


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--sample", type=int, default=12_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="rows to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench(options, Path(folder))


def bench(options: argparse.Namespace, work: Path) -> None:
    rng = random.Random(0)
    items = packaged_items(options.wheels or options.peers / "wheels")
    texts = list(pieces(options.documents, rng))
    rows = planted(texts, items, rng)
    part = planted(texts[: options.sample], items, random.Random(1))
    whole_path, part_path = work / "whole.jsonl", work / "part.jsonl"
    whole_path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    part_path.write_text("".join(json.dumps(r) + "\n" for r in part))
    (work / "items.jsonl").write_text(
        "".join(json.dumps({"id": f"i{n}", "text": t}) + "\n" for n, t in enumerate(items))
    )
    train_bpe(texts[:3000], 8192, NANO_SPECIAL).save(work)
    megabytes = [sum(len(r["text"].encode()) for r in each) / 1e6 for each in (rows, part)]
    print(f"{len(rows):,} pieces of real text ({megabytes[0]:.0f} MB); peers take {len(part):,} "
          f"({megabytes[1]:.1f} MB); {len(items):,} benchmark questions")  # fmt: skip
    copied = np.frombuffer(whole_path.read_bytes(), np.uint8)
    begun = time.perf_counter()
    total = int(np.bitwise_xor.reduce(copied[: len(copied) // 8 * 8].view(np.uint64)) & 1)
    print(f"memory read: {len(copied) / (time.perf_counter() - begun) / 1e9 + 0 * total:.1f} GB/s")
    python = (options.peers / "bin" / "python").absolute()
    table: list[dict[str, Any]] = []

    def compare(
        name: str, what: str, ours: Callable[[Path], Callable[[], set[str]]], goal: float, kind: str
    ) -> None:
        mine, theirs = [], []
        for _ in range(options.repeats):
            seconds, found = timed(ours(part_path))
            mine.append(seconds)
            seconds, peer_found = peer(python, what, part_path, work)
            theirs.append(seconds)
        a, b = (megabytes[1] / statistics.median(t) for t in (mine, theirs))
        same = True
        if kind:
            planted_found = recall(found, part, kind), recall(peer_found, part, kind)
            same = planted_found[0] >= planted_found[1]
            both = [found_of(f, part, kind) for f in (found, peer_found)]
            agree = len(both[0] & both[1]) / max(len(both[0] | both[1]), 1)
            print(f"  {name}: planted found {planted_found[0]:.1%}, by the peer "
                  f"{planted_found[1]:.1%}, the same ones {agree:.1%}; removed {len(found):,} "
                  f"and {len(peer_found):,}")  # fmt: skip
        table.append({"name": f"{name}, MB/s of one core", "ours": round(a, 2),
                      "peer": round(b, 2), "ratio": round(a / b, 2), "goal": f"≥ {goal} ×",
                      "met": a / b >= goal and same})  # fmt: skip

    def whole(what: str, kind: str, goal: float, most: float | None) -> None:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, found, peak = pool.apply(alone, (what, whole_path, work))
        print(f"  {what} all: {megabytes[0] / seconds:.1f} MB/s, planted found "
              f"{recall(found, rows, kind):.1%}")  # fmt: skip
        rate = round(len(rows) / seconds)
        table.append({"name": f"{what} all, documents/s of one core", "ours": rate, "peer": None,
                      "ratio": None, "goal": f"≥ {goal:,}" if goal else "",
                      "met": rate >= goal})  # fmt: skip
        table.append({"name": f"{what} all, peak memory in GiB", "ours": round(peak, 2),
                      "peer": None, "ratio": None, "goal": f"≤ {most}" if most else "",
                      "met": most is None or peak <= most})  # fmt: skip

    decontaminated = partial(our_decontamination, work=work)
    tokenised = partial(our_tokens, work=work)

    def deduplicated(path: Path) -> Callable[[], set[str]]:
        return lambda: our_dedup(path, work)

    if "deduplicate" in options.only:
        compare("deduplicate / datatrove", "minhash", deduplicated, 8, "copy")
        compare("deduplicate / text-dedup", "text_dedup", deduplicated, 1, "copy")
    if "decontaminate" in options.only:
        compare("decontaminate / datatrove", "decontaminate", decontaminated, 10, "leak")
        compare("decontaminate / lm-eval", "janitor", decontaminated, 10, "leak")
    if "tokenise" in options.only:
        compare("tokenise and pack / datatrove", "tokenize", tokenised, 2, "")
    if "all" in options.only:
        whole("decontaminate", "leak", 15_000, 1.0)
        whole("deduplicate", "copy", 0, None)
    print()
    for row in table:
        print(f"{row['name']:<48} {row['ours']!s:>9} {row['peer'] or '':>8} "
              f"{row['ratio'] or '':>7}  {row['goal']:<10} {'met' if row['met'] else 'missed'}")  # fmt: skip  # noqa: E501
    print(json.dumps({"bench": "data", "rows": table}, ensure_ascii=False))


if __name__ == "__main__":
    main()
