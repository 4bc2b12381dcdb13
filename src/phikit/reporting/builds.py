"""A corpus of `phikit data build`: its steps' files, and what became of one of its documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from phikit.files import read_json
from phikit.reporting.corpora import lines

PASSED, KEPT = "1-clean", "4-kept"  # folders of the documents that passed the filters, and stayed
_TOKEN = np.dtype("<u4")


def step_of(file: Path) -> str:
    """The step of a corpus whose documents a file holds; "" for any other file."""
    step, root = file.parent.parent.name, file.parent.parent.parent
    return step if step in (PASSED, KEPT) and (root / "plan.json").exists() else ""


def followed(file: Path, name: str) -> Iterator[tuple[str, str, str, str]]:
    """What a document of a corpus went into, or why it went: (step, by, what, how it is known).

    Args:
        file: of one of the corpus's steps; holds the document.
        name: the document's id.
    """
    shard, root = file.parent.name, file.parent.parent.parent
    kept = root / KEPT / shard
    verb = "data build"
    for row in lines(kept / "rejected.jsonl"):
        if row["id"] == name:
            yield f"{KEPT}/{shard}", verb, f"removed: {row['reason']}", _why(root, row)
            return
    stays = kept / "documents.parquet"
    ids = _ids(stays) if stays.exists() else []
    if name not in ids:
        yield f"{KEPT}/{shard}", verb, "not judged yet", "the corpus is not built to its end"
        return
    place = ids.index(name)
    yield f"{KEPT}/{shard}", verb, "kept", f"document {place + 1:,} of {len(ids):,}"
    for made in sorted(root.glob(f"5-tokens-*/{shard}/lengths.npy")):
        lengths = np.load(made, mmap_mode="r", allow_pickle=False)
        size = int(lengths[place])
        begin = int(lengths[:place].sum())
        tokens = np.memmap(made.parent / "tokens.bin", _TOKEN, "r")[begin : begin + size]
        yield f"{made.parents[1].name}/{shard}", verb, "tokens", f"{size:,} tokens"
        for mixture in sorted(root.glob("6-training/*/index.json")):
            digest = read_json(mixture)["tokenizer"]
            if made.parents[1].name == f"5-tokens-{digest[:8]}":
                found = _drawn(mixture.parent, tokens)
                yield f"6-training/{mixture.parent.name}", verb, "training shards", found


def _ids(file: Path) -> list[str]:
    ids: list[str] = pq.read_table(file, columns=["id"])["id"].to_pylist()
    return ids


def _why(root: Path, row: dict[str, object]) -> str:
    """Of a duplicate, the document that stands for it; of contamination, the item."""
    if "item" in row:
        return f"item {row['item']}, by {row['rule']}"
    if "of" not in row:
        return f"{row['bits']} bits a trigram" if "bits" in row else ""
    number = int(str(row["of"]))
    for shard in sorted((root / PASSED).glob("*/documents.parquet")):
        count = pq.read_metadata(shard).num_rows
        if number < count:
            return f"of {_ids(shard)[number]}, similarity {row['similarity']}"
        number -= count
    return f"similarity {row['similarity']}"


def _drawn(folder: Path, ids: np.ndarray) -> str:
    """How often a document's tokens are in a mixture, and where first."""
    bounds = np.load(folder / "bounds.npy", mmap_mode="r", allow_pickle=False)
    tokens = np.memmap(folder / "tokens.bin", _TOKEN, "r") if bounds[-1] else np.zeros(0, _TOKEN)
    begins = [int(bounds[n]) for n in np.flatnonzero(np.diff(bounds) == len(ids))]
    begins = [b for b in begins if np.array_equal(tokens[b : b + len(ids)], ids)]
    if not begins:
        return "not drawn into these shards"
    times = "once" if len(begins) == 1 else f"{len(begins)} times"
    return f"its tokens are there {times}, first from token {begins[0]:,} of {len(tokens):,}"
