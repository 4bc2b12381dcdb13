"""The whole data pipeline at growing sizes: is its time linear, and is its memory bounded?

Real text (the sources and documents of this Python and of the packages installed beside it), again
and again with one word in ten changed, so that copies are not near-duplicates, to the wanted size
as JSON lines. `phikit data build` reads, filters, deduplicates, counts letters, decontaminates and
judges it; the memory of all its processes is added up five times a second. Whether time is linear
is told by the processors' time, which other programs on the machine change less.

    python benchmarks/data_scale.py [--bytes 5e9]     at a quarter, half and all of it
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from phikit.records import Sample, write_records

GOAL_BYTES = 3 * 2**30
FILE_BYTES = 256_000_000


def texts() -> list[str]:
    """Real files of 1 to 60 KB, in a fixed shuffled order."""
    folders = (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    files = sorted(
        p for f in folders for s in ("py", "md", "rst", "txt") for p in Path(f).rglob(f"*.{s}")
    )
    random.Random(0).shuffle(files)
    found, size = [], 0
    for path in files:
        text = path.read_bytes().decode("utf-8", "ignore")
        if 1000 <= len(text) <= 60_000:
            found.append(text)
            size += len(text)
        if size > 60_000_000:
            break
    return found


def rows(size: int) -> Iterator[bytes]:
    """Lines of JSON, until they hold so many bytes."""
    rng, real = random.Random(1), texts()
    vocabulary = sorted({w for t in real[:300] for w in t.split() if w.isalpha()})
    written = number = 0
    while written < size:
        text = real[number % len(real)]
        if number >= len(real):
            words = text.split(" ")
            for _ in range(len(words) // 10 + 1):
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
            text = " ".join(words)
        line = json.dumps({"text": text, "source": "web", "url": f"https://a.example/{number}"})
        yield line.encode() + b"\n"
        written += len(line) + 1
        number += 1


def write(folder: Path, size: int) -> int:
    folder.mkdir()
    total = number = 0
    out = (folder / "0.jsonl").open("wb")
    for row in rows(size):
        if out.tell() > FILE_BYTES:
            number += 1
            out.close()
            out = (folder / f"{number}.jsonl").open("wb")
        out.write(row)
        total += len(row)
    out.close()
    return total


def memory(root: int) -> int:
    """Resident bytes of a process and all below it."""
    parents: dict[int, int] = {}
    resident: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                held = (folder / "statm").read_text().split()
                parents[int(folder.name)] = int(fields[1])
                # without what is only mapped from files, which the system takes back at will
                resident[int(folder.name)] = (int(held[1]) - int(held[2])) * 4096
            except (OSError, IndexError):
                continue
    total = 0
    for pid in resident:
        at: int | None = pid
        while at is not None and at != root:
            at = parents.get(at)
        total += resident[pid] if at == root else 0
    return total


def build(folder: Path, out: Path, items: Path, workers: int) -> tuple[float, float, int]:
    """Seconds, seconds of processors, and the greatest memory in bytes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-m", "phikit", "data", "build", folder, "--out", out, "--items", items,
         "--workers", str(workers)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    peak = 0
    while running.poll() is None:
        peak = max(peak, memory(running.pid))
        time.sleep(0.2)
    if running.returncode:
        sys.exit(f"the build failed:\n{running.communicate()[0][-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, used, peak


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bytes", type=float, default=5e9)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the text goes [a temporary folder]")
    options = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        work = Path(scratch)
        question = (
            {"role": "user", "content": "Which of these words was never in the corpus at all?"},
        )
        write_records(
            work / "items.parquet", [Sample(kind="i", source="e", messages=question)], Sample
        )
        for part in (0.25, 0.5, 1.0):
            size = write(work / "in", int(options.bytes * part))
            seconds, used, peak = build(
                work / "in", work / "out", work / "items.parquet", options.workers
            )
            report = json.loads((work / "out" / "corpus.json").read_text())
            for name in ("in", "out"):
                shutil.rmtree(work / name)
            table.append((size, used, peak))
            kept = f"{report['documents']:,} documents kept"
            print(f"{size / 1e9:6.2f} GB  {seconds:7.1f} s, of processors {used:7.1f} s, "
                  f"{size / 1e6 / used:6.2f} MB/s of one  {peak / 2**30:5.2f} GiB  {kept}",
                  flush=True)  # fmt: skip
    rates = [size / 1e6 / used for size, used, _ in table]
    peak = max(row[2] for row in table)
    lines = [
        {"name": f"pipeline, MB/s of one core at {table[-1][0] / 1e9:.2f} GB",
         "ours": round(rates[-1], 2), "peer": None, "ratio": round(rates[-1] / rates[0], 2),
         "goal": "linear: ≥ 0.85 of a quarter's rate", "met": rates[-1] >= 0.85 * rates[0]},
        {"name": "peak memory, GiB", "ours": round(peak / 2**30, 2), "peer": None, "ratio": None,
         "goal": "≤ 3", "met": peak <= GOAL_BYTES},
    ]  # fmt: skip
    print(json.dumps({"bench": "data-scale", "rows": lines}, ensure_ascii=False))


if __name__ == "__main__":
    main()
