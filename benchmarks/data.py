"""Cleaning and packing text, beside datatrove and lm-eval.

Real text: the sources and documents of this Python's library and of the packages installed beside
it, cut into pieces of about a thousand characters. One in twenty is followed, somewhere, by a copy
with a word changed; one in two hundred holds a question of the packaged benchmarks. Times are of
one core (the processor's, not the clock's), reading the JSON lines included on both sides; peers
work on a part of the pieces, being slower, and rates are compared. Runs are interleaved, and the
medians of `--repeats` count.

    python benchmarks/data.py --peers .venv-peers [--documents 200000] [--sample 3000]
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import Tokenizer, train_bpe
from phikit.data.decontaminate import Decontaminator
from phikit.data.dedup import DedupConfig, Deduplicator
from phikit.data.pack import pack

PIECE = 1000
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
    rows = read(path)
    dedup = Deduplicator(DedupConfig())
    for row in rows:
        dedup.add(row["text"])
    return {rows[n]["id"] for cluster in dedup.clusters() for n in cluster.members[1:]}


def our_decontamination(path: Path, work: Path) -> Callable[[], set[str]]:
    items = [(row["id"], row["text"]) for row in read(work / "items.jsonl")]
    decontaminator = Decontaminator(items)

    def judge() -> set[str]:
        rows = read(path)
        texts = [row["text"] for row in rows]
        suspects = decontaminator.count(texts)
        decontaminator.settle()
        found = decontaminator.check_all([texts[n] for n in suspects])
        return {rows[suspects[n]]["id"] for n, f in found.items() if f.verdict == "contaminated"}

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


def recall(removed: set[str], rows: list[Row], kind: str) -> float:
    """The part of what was planted that was found: a copy, or the piece it was made from."""
    number = [row["id"].partition("-")[2] for row in rows if row["id"].startswith(f"{kind}-")]
    hit = [f"{kind}-{n}" in removed or (kind == "copy" and f"d{n}" in removed) for n in number]
    return float(np.mean(hit))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--sample", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=3)
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
            print(f"  {name}: planted found {planted_found[0]:.1%}, by the peer "
                  f"{planted_found[1]:.1%}; removed {len(found):,} and {len(peer_found):,}")  # fmt: skip  # noqa: E501
        table.append({"name": f"{name}, MB/s of one core", "ours": round(a, 2),
                      "peer": round(b, 2), "ratio": round(a / b, 2), "goal": f"≥ {goal} ×",
                      "met": a / b >= goal and same})  # fmt: skip

    compare("deduplicate / datatrove", "minhash", lambda p: lambda: our_dedup(p, work), 8, "copy")
    compare("decontaminate / datatrove", "decontaminate",
            lambda p: our_decontamination(p, work), 10, "leak")  # fmt: skip
    compare(
        "decontaminate / lm-eval", "janitor", lambda p: our_decontamination(p, work), 10, "leak"
    )
    compare("tokenise and pack / datatrove", "tokenize", lambda p: our_tokens(p, work), 2, "")

    def alone(name: str, run: Callable[[], set[str]], kind: str, goal: float) -> None:
        seconds, found = timed(run)
        print(f"  {name}: {megabytes[0] / seconds:.1f} MB/s, planted found "
              f"{recall(found, rows, kind):.1%}")  # fmt: skip
        rate = round(len(rows) / seconds)
        table.append({"name": f"{name}, documents/s of one core", "ours": rate, "peer": None,
                      "ratio": None, "goal": f"≥ {goal:,}" if goal else "",
                      "met": rate >= goal})  # fmt: skip

    alone("decontaminate all", our_decontamination(whole_path, work), "leak", 15_000)
    alone("deduplicate all", lambda: our_dedup(whole_path, work), "copy", 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of this process, which holds all pieces twice: {peak:.2f} GiB\n")
    for row in table:
        print(f"{row['name']:<48} {row['ours']!s:>9} {row['peer'] or '':>8} "
              f"{row['ratio'] or '':>7}  {row['goal']:<10} {'met' if row['met'] else 'missed'}")  # fmt: skip  # noqa: E501
    print(json.dumps({"bench": "data", "rows": table}, ensure_ascii=False))


if __name__ == "__main__":
    main()
