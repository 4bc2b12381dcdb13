"""The published quality rules beside datatrove's own filters: verdict, reason, and text kept.

Real text: Python's documentation, docstrings and code, the documents of this machine's Debian
packages and of Python's packages, and of any folder named with `--texts`; each also mangled in a
way that a limit is near (cut, doubled, shuffled, listed, with other signs), and a few made by hand
(empty, one word, other scripts). Differences are counted by rule and by the pair of reasons.

    python benchmarks/filters.py --peers .venv-peers-data [--documents 3000] [--texts FOLDER]
    python benchmarks/filters.py --peers .venv-peers-data --expected tests/data/datatrove.json

The second writes what datatrove says of 150 of the shorter texts, for the tests.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from phikit.data import published_rules as rules
from phikit.data.readers import ReaderConfig, read, read_file
from phikit.data.reading.base import File
from phikit.records import Document

EXPECTED = 150
#: datatrove's reason: ours
REASONS = {
    "gopher_short_doc": "number of words", "gopher_long_doc": "number of words",
    "gopher_below_avg_threshold": "mean word length",
    "gopher_above_avg_threshold": "mean word length", "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses", "gopher_too_many_bullets": "bullet lines",
    "gopher_too_many_end_ellipsis": "ellipsis lines",
    "gopher_below_alpha_threshold": "few words with letters",
    "gopher_enough_stop_words": "few stop words", "dup_para_frac": "duplicate paragraphs",
    "dup_para_char_frac": "duplicate paragraphs", "dup_line_frac": "duplicate lines",
    "dup_line_char_frac": "duplicate lines", "line_punct_ratio": "few lines end a sentence",
    "short_line_ratio": "short lines", "char_dup_ratio": "duplicate lines",
    "list_ratio": "many lines for its words", "lorem_ipsum": "lorem ipsum",
    "curly_bracket": "curly bracket", "too_few_sentences": "fewer than 5 sentences",
    **{f"top_{n}_gram": f"frequent {n}-gram" for n in range(2, 5)},
    **{f"duplicated_{n}_n_grams": f"duplicate {n}-grams" for n in range(5, 11)},
}  # fmt: skip
RULES: dict[str, Callable[[str], str | None]] = {
    "gopher_quality": rules.gopher_quality,
    "gopher_repetition": rules.gopher_repetition,
    "fineweb": rules.fineweb_quality,
    "c4": lambda text: rules.c4_lines(text, terminal=True)[1],
    "c4_any_ending": lambda text: rules.c4_lines(text, terminal=False)[1],
}
BY_HAND = (
    "", " ", "\n\n\n", "word", "#", "...", "…\n…\n…", "- a\n- b\n- c", "{", "lorem ipsum dolor sit",
    "a" * 1200, "\u00a0\u2028\u2029\x85\x0b\x0c\x1c", "\ufeff\u200b\u200d", "😀 " * 80, "١٢٣ " * 60,
    "Der Garten hinter dem Haus war größer, als alle gedacht hatten. " * 12,
    "这是一个句子。那是另一个句子！真的吗？" * 30, "यह एक वाक्य है। यह दूसरा वाक्य है।\n" * 12,
    "Это предложение. А это другое предложение, и оно длиннее! " * 12,
    "هذه جملة قصيرة. وهذه جملة أخرى؟ " * 20,
    "\n".join(f"| {n} | {n * n} | cell |" for n in range(60)),
)  # fmt: skip


def texts(folders: list[Path]) -> Iterator[str]:
    """Real texts, in a fixed shuffled order, none longer than 20,000 characters."""
    rng = random.Random(0)
    settings = ReaderConfig()
    documents = [d for d in islice(read(settings), 6000) if isinstance(d, Document)]
    root = [Path("/usr/share/doc"), Path(sysconfig.get_path("purelib")), *folders]
    found = {
        path
        for folder in root
        for suffix in ("txt", "txt.gz", "md", "md.gz", "rst", "html", "jsonl")
        for path in folder.rglob(f"*.{suffix}")
        if path.is_file() and path.stat().st_size < 10_000_000
    }
    paths = sorted(found)
    rng.shuffle(paths)
    for path in paths[:1500]:
        for document in islice(read_file(File(path, path.name), settings), 100):
            if isinstance(document, Document):
                documents.append(document)
    rng.shuffle(documents)
    yield from (d.text[:20_000] for d in documents if d.text.strip())


def words_at(text: str, count: int) -> str:
    """The beginning of a text that has so many words between spaces."""
    ends = [m.end() for m in re.finditer(r"\S+", text)]
    return text[: ends[min(count, len(ends)) - 1]] if ends else text


#: how a text is mangled, so that one rule or another is near its limit
MANGLED: dict[str, Callable[[str, random.Random], str]] = {
    "as it is": lambda text, rng: text,
    "cut anywhere": lambda text, rng: text[: rng.randrange(len(text)) + 1],
    "some fifty words": lambda text, rng: words_at(text, rng.randrange(35, 60)),
    "some five sentences": lambda text, rng: " ".join(
        re.split(r"(?<=[.!?])\s+", text)[: rng.randrange(3, 8)]
    ),
    "a part doubled": lambda text, rng: text + text[: rng.randrange(len(text)) // 3],
    "a line again": lambda text, rng: text + "\n" + "\n".join(
        [text.splitlines()[0]] * rng.randrange(1, 30)
    ),
    "lines shuffled": lambda text, rng: "\n".join(
        rng.sample(lines := text.splitlines(), len(lines))
    ),
    "lines joined": lambda text, rng: " ".join(text.split("\n")),
    "sentences on lines": lambda text, rng: text.replace(". ", ".\n"),
    "windows line ends": lambda text, rng: text.replace("\n", "\r\n"),
    "listed": lambda text, rng: "\n".join(
        "- " + line if rng.random() < 0.92 else line for line in text.splitlines()
    ),
    "dots at ends": lambda text, rng: "\n".join(
        line + "..." if rng.random() < 0.3 else line for line in text.splitlines()
    ),
    "hashes": lambda text, rng: re.sub(r" ", lambda m: " # " if rng.random() < 0.1 else " ", text),
    "numbers": lambda text, rng: re.sub(
        r" ", lambda m: f" {rng.randrange(9999)} " if rng.random() < 0.22 else " ", text
    ),
    "a phrase again": lambda text, rng: re.sub(
        r"\. ", lambda m: ". As we said before. " if rng.random() < 0.5 else ". ", text
    ),
    "typeset": lambda text, rng: text.replace("'", "’").replace(" - ", "—").replace("...", "…"),
    "upper case": lambda text, rng: text.upper(),
    "other blanks": lambda text, rng: text.replace(" ", rng.choice("\u00a0\t\u2003\u3000")),
    "other lines": lambda text, rng: text.replace("\n", rng.choice("\u2028\x0b\x0c\x85")),
    "cited": lambda text, rng: text.replace(".\n", ". [1]\n").replace(". ", ".[2] "),
    "web furniture": lambda text, rng: "Accept cookies\nThis site uses cookies.\nJavascript is "
    f"needed.\n{text}\nOur privacy policy has changed.\nHome | About | Contact",
}  # fmt: skip


def cases(folders: list[Path], count: int) -> list[dict[str, str]]:
    """Texts with an id and what was done to them."""
    rng = random.Random(1)
    ways = list(MANGLED)
    made = [{"id": f"hand-{n}", "way": "by hand", "text": text} for n, text in enumerate(BY_HAND)]
    for n, text in enumerate(texts(folders)):
        if len(made) >= count:
            break
        way = ways[0] if n % 3 == 0 else ways[n % len(ways)]
        made.append({"id": str(n), "way": way, "text": MANGLED[way](text, rng)})
    return made


def datatrove(peers: Path, made: list[dict[str, str]]) -> tuple[float, list[dict[str, Any]]]:
    """Seconds that it took, and what it says of each text."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
        runner = Path(__file__).parent / "data_peers" / "run.py"
        done = subprocess.run(
            [peers / "bin" / "python", runner, "filters", work / "documents.jsonl", work],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        said = [json.loads(line) for line in (work / "filters.jsonl").read_text().splitlines()]
        return json.loads(done.stdout.splitlines()[-1])["seconds"], said


def compare(
    made: list[dict[str, str]], said: list[dict[str, Any]], their_seconds: float, show: int
) -> list[dict[str, Any]]:
    millions = sum(len(row["text"]) for row in made) / 1e6
    print(f"{len(made)} texts, {millions:.1f} million characters")
    table: list[dict[str, Any]] = []
    total = 0.0
    for name, rule in RULES.items():
        verdicts = reasons = rejected = 0
        apart: Counter[tuple[str | None, str | None]] = Counter()
        examples: dict[tuple[str | None, str | None], list[str]] = {}
        started = time.process_time()
        for row, theirs in zip(made, said, strict=True):
            ours, other = rule(row["text"]), REASONS.get(theirs[name], theirs[name])
            rejected += other is not None
            verdicts += (ours is None) == (other is None)
            reasons += ours == other
            if ours != other:
                apart[ours, other] += 1
                examples.setdefault((ours, other), []).append(f"{row['id']} ({row['way']})")
        seconds = time.process_time() - started
        total += seconds
        table.append(row_of(f"{name}, texts with the same verdict and reason", reasons, len(made)))
        print(f"\n{name}: same verdict {verdicts}, same reason {reasons}; rejects {rejected}; "
              f"{seconds:.1f} s")  # fmt: skip
        for pair, count in apart.most_common():
            print(f"  {count}: here {pair[0]!r}, datatrove {pair[1]!r}: {examples[pair][:show]}")
    for name, terminal in (("c4", True), ("c4_any_ending", False)):
        kept = [(rules.c4_lines(row["text"], terminal)[0], theirs[name + "_text"])
                for row, theirs in zip(made, said, strict=True)
                if theirs[name] is None]  # fmt: skip
        same = sum(ours.split() == other.split() for ours, other in kept)
        table.append(row_of(f"{name}, texts of which the same words are kept", same, len(kept)))
    rates = round(millions / total, 2), round(millions / their_seconds, 2)
    ratio = round(their_seconds / total, 2)
    table.append({"name": "all five, million characters a second of one core", "ours": rates[0],
                  "peer": rates[1], "ratio": ratio, "goal": None, "met": None})  # fmt: skip
    return table


def row_of(name: str, same: int, of: int) -> dict[str, Any]:
    return {"name": name, "ours": same, "peer": of, "ratio": round(same / max(of, 1), 4),
            "goal": "all", "met": same == of}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=3000)
    parser.add_argument("--texts", type=Path, action="append", default=[])
    parser.add_argument("--show", type=int, default=3, help="examples of each difference")
    parser.add_argument("--expected", type=Path)
    asked = parser.parse_args()
    made = cases(asked.texts, asked.documents)
    if asked.expected:
        made = [row for row in made if len(row["text"]) < 4000]
        made = [*made[: len(BY_HAND)], *made[len(BY_HAND) :][: EXPECTED - len(BY_HAND)]]
    seconds, said = datatrove(asked.peers, made)
    if asked.expected:
        stored = [
            {"text": row["text"], **{n: REASONS.get(theirs[n], theirs[n]) for n in RULES}}
            for row, theirs in zip(made, said, strict=True)
        ]
        lines = ",\n".join(json.dumps(row, sort_keys=True) for row in stored)
        asked.expected.write_text(f"[\n{lines}\n]\n")
    table = compare(made, said, seconds, asked.show)
    print()
    for row in table:
        met = {True: "met", False: "missed", None: ""}[row["met"]]
        print(f"{row['name']:<56} {row['ours']:>8} {row['peer']:>8} {row['ratio']:>7} {met}")
    print(json.dumps({"bench": "filters", "rows": table}))


if __name__ == "__main__":
    main()
