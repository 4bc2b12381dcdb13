"""`phikit data inspect`: what is in a corpus, and what it looks like."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phikit.chat.tokenizer import Tokenizer
from phikit.records import Document, Sample, write_records
from phikit.reporting.corpora import lines
from phikit.reporting.sheets import Block, Cell, Section, Sheet
from phikit.reporting.tables import Stored, Tables, stored
from phikit.synth.seeds import documents_at

_MEASURED = 2000  # texts whose tokens are counted
# files of what did not come through, or is counted elsewhere
_KEPT_OUT = ("rejected", "passed", "gathered")
_FILES = "read_parquet(?, filename = true, union_by_name = true)"


def sheet(path: Path, shown: int = 4, seed: int = 0, tokenizer: Path | None = None) -> Sheet:
    """What is at a path: a run directory, a stage's folder, or one file of records.

    Args:
        shown: records of each kind to read.
        seed: of their choice.
        tokenizer: counts the tokens; the run's own when left out, else words are counted.

    Raises:
        PhikitError: there are no records.
    """
    if not stored(path, empty=True):
        return _of_ones_own(path, shown, seed, tokenizer)
    files, tables = stored(path), Tables()
    root = path if path.is_dir() else path.parent
    documents = [f for f in files if f.kind is Document and f.role not in _KEPT_OUT]
    samples = [f for f in files if f.kind is Sample and f.role not in _KEPT_OUT]
    counts = _counts(files, tables)
    figures: list[tuple[str, Cell]] = []
    for name, kept in (("documents", documents), ("samples", samples)):
        if kept:
            figures.append((name, sum(counts[f.path] for f in kept)))
    figures.append(("files of records", len(files)))
    sections = [
        _files(files, counts, root),
        _documents(documents, tables),
        _samples(samples, tables),
        _lengths([*documents, *samples], tables, tokenizer or _own_tokenizer(root)),
        _rejected(files, tables, root),
        _contamination(root),
        _to_read("Documents to read", documents, tables, shown, seed),
        _to_read("Samples to read", samples, tables, shown, seed),
        _to_read("Rejected samples to read", _rejected_files(files), tables, shown, seed),
    ]
    return Sheet(
        f"What is in {path.resolve().name}",
        "Counts of all records, and texts drawn at random. Where one is from and what it went into "
        "says: phikit data trace ID",
        figures,
        [s for s in sections if s.rows or s.blocks],
    )


def _of_ones_own(path: Path, shown: int, seed: int, tokenizer: Path | None) -> Sheet:
    """The same of files that hold no records yet, read as `data.documents` reads them."""
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / f"{path.resolve().stem}.parquet"
        if not write_records(records, documents_at(path), Document):
            stored(path)  # says that nothing is there
        return sheet(records, shown, seed, tokenizer)


def _counts(files: Sequence[Stored], tables: Tables) -> dict[Path, int]:
    found = tables.rows(
        "SELECT file_name, num_rows FROM parquet_file_metadata(?)", [f.path for f in files]
    )
    return {Path(name): int(rows) for name, rows in found}


def _files(files: Sequence[Stored], counts: dict[Path, int], root: Path) -> Section:
    rows = [
        (str(f.path.relative_to(root)), f.kind.__name__, counts[f.path], f"{size / 2**20:.2f} MiB")
        for f in files
        if (size := f.path.stat().st_size) >= 0
    ]
    return Section("Files of records", "", ("file", "holds", "records", "size"), list(rows))


def _documents(files: Sequence[Stored], tables: Tables) -> Section:
    found = tables.rows(
        f"SELECT source, licence, language, count(*), sum(length(text)) FROM {_FILES} "
        "GROUP BY ALL ORDER BY 5 DESC, 1, 2, 3",
        [f.path for f in files],
    )
    total = sum(row[4] for row in found) or 1
    rows = [
        (source, licence or "(not stated)", language, n, int(chars), chars / total)
        for source, licence, language, n, chars in found
    ]
    head = ("source", "licence", "language", "documents", "characters", "share")
    return Section("Documents", "By their class in the mixture.", head, rows)


def _samples(files: Sequence[Stored], tables: Tables) -> Section:
    found = tables.rows(
        "SELECT kind, source, coalesce(json_extract_string(meta, '$.teacher'), '') AS teacher, "
        "verifier, count(*), sum(length(text)), avg(CASE WHEN len(verdicts) > 0 THEN 1 ELSE 0 END) "
        f"FROM {_FILES} GROUP BY ALL ORDER BY 5 DESC, 1, 2, 3, 4",
        [f.path for f in files],
    )
    rows = [
        (kind, source, teacher or "–", verifier or "–", n, int(chars or 0), float(judged))
        for kind, source, teacher, verifier, n, chars, judged in found
    ]
    head = ("type", "source", "teacher", "verifier", "samples", "characters", "with verdicts")
    return Section("Samples", "By dataset type; a sample counts once per file.", head, rows)


def _lengths(files: Sequence[Stored], tables: Tables, tokenizer: Path | None) -> Section:
    """Quantiles by kind and source, of a sample of the texts."""
    count = Tokenizer.load(tokenizer).encode_batch if tokenizer else None
    unit = "tokens" if count else "words"
    rows: list[tuple[Cell, ...]] = []
    for kind, column in ((Document, "source"), (Sample, "kind")):
        mine = [f.path for f in files if f.kind is kind]
        found = tables.rows(
            f"SELECT {column}, text FROM {_FILES} WHERE length(text) > 0 ORDER BY md5(id) LIMIT ?",
            mine,
            _MEASURED,
        )
        texts = [text for _, text in found]
        sizes = [len(x) for x in (count(texts) if count else [t.split() for t in texts])]
        groups: dict[str, list[int]] = {}
        for (name, _), size in zip(found, sizes, strict=True):
            groups.setdefault(name, []).append(size)
        for name, values in sorted(groups.items(), key=lambda item: -len(item[1])):
            ordered = sorted(values)
            at = [ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.05, 0.5, 0.95)]
            rows.append((kind.__name__.lower(), name, len(values), *at, ordered[-1]))
    own = f"by the tokenizer of {tokenizer.parent.name}" if tokenizer else "there is no tokenizer"
    note = f"In {unit} ({own}), of up to {_MEASURED:,} texts each."
    head = ("of", "source or type", "measured", "5 %", "median", "95 %", "longest")
    return Section("Lengths", note, head, rows)


def _own_tokenizer(root: Path) -> Path | None:
    found = sorted(root.glob("*/tokenizer/tokenizer.json"))
    return found[0].parent if found else None


def _rejected_files(files: Sequence[Stored]) -> list[Stored]:
    return [f for f in files if f.kind is Sample and f.role in _KEPT_OUT]


def _rejected(files: Sequence[Stored], tables: Tables, root: Path) -> Section:
    """By stage and reason: documents' from their ledgers, samples' from their verdicts."""
    rows: list[tuple[Cell, ...]] = []
    for path in sorted(root.rglob("rejected.jsonl")):
        ledger = list(lines(path))
        example = {r["reason"]: f"{r['name']}: {r['excerpt']}" for r in reversed(ledger)}
        for reason, n in Counter(r["reason"] for r in ledger).most_common():
            rows.append((_short(path.parent, root), "documents", reason, n, _line(example[reason])))
    found = tables.rows(
        "WITH failed AS (SELECT filename, text, "
        f"list_filter(verdicts, lambda v: NOT v.passed)[1] AS v FROM {_FILES}) "
        "SELECT filename, v.verifier, count(*), first(v.reason), first(text) FROM failed "
        "GROUP BY ALL ORDER BY 1, 3 DESC",
        [f.path for f in _rejected_files(files)],
    )
    for name, verifier, n, reason, text in found:
        what = f"{reason or ''} | {text}"
        why = verifier or "kept out though valid (duplicate, alike, surplus)"
        rows.append((_short(Path(name).parent, root), "samples", why, int(n), _line(what)))
    head = ("stage", "what", "reason", "count", "for example")
    return Section("What was rejected, and why", "", head, rows)


def _short(folder: Path, root: Path) -> str:
    return folder.relative_to(root).as_posix() if folder != root else folder.resolve().name


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else text[:89] + "…"


def _contamination(root: Path) -> Section:
    blocks = []
    for path in sorted(root.rglob("contamination.jsonl")):
        for row in list(lines(path))[:3]:
            text = f"TEXT  {_line(row['text'])}\nITEM  {_line(row['item_text'])}"
            blocks.append(
                Block(f"{_short(path.parent, root)}: {row['verdict']}", text, row["rule"])
            )
    return Section("Contamination", "The first findings of each ledger.", blocks=blocks[:6])


def _to_read(title: str, files: Sequence[Stored], tables: Tables, shown: int, seed: int) -> Section:
    """Records drawn with a seed: those whose hashes with it come first."""
    if not files:
        return Section(title)
    is_document = files[0].kind is Document
    columns = "source, licence" if is_document else "kind, messages"
    more = "meta" if is_document else "verdicts"
    found = tables.rows(
        f"SELECT id, {columns}, text, {more} FROM {_FILES} ORDER BY md5(id || ?), id LIMIT ?",
        [f.path for f in files],
        str(seed),
        shown,
    )
    good = None if is_document else files[0].role not in _KEPT_OUT
    make = _document if is_document else _sample
    return Section(title, f"Drawn with seed {seed}.", blocks=[make(row, good) for row in found])


def _document(row: tuple[Any, ...], good: bool | None) -> Block:
    name, source, licence, text, meta = row
    known = json.loads(meta)
    about = (str(known[key]) for key in ("kind", "name", "path") if known.get(key))
    note = "; ".join((licence or "no licence stated", *about))
    return Block(f"{source} {name}", text, note, good)


def _sample(row: tuple[Any, ...], good: bool | None) -> Block:
    name, kind, messages, text, verdicts = row
    turns = [f"[{m['role']}] {m['content']}" for m in json.loads(messages)]
    said = "; ".join(
        f"{'✓' if v['passed'] else '✗'} {v['verifier']}: {v['reason']}"[:120] for v in verdicts
    )
    return Block(f"{kind} {name}", "\n".join(turns) or text, said or "no verdicts", good)
