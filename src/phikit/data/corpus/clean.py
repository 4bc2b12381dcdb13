"""A shard's documents: read, filtered, and what must be known of them to compare all shards.

Beside `documents.parquet` a shard's folder holds arrays, one entry for each document: `texts` (a
hash of the text), `sizes` (characters), `keys` (all words), `urls` (0: none), `bands` [bands,
documents] and `signatures` [documents, hashes] of MinHash; and, for evaluation items, what it
shares with them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import numpy as np
from numpy.typing import NDArray

from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.plan import Shard, read_shard
from phikit.data.decontaminate import Decontaminator, Sharing, item_text
from phikit.data.dedup import signatures_of
from phikit.data.filter_steps import apply
from phikit.data.reading.base import Broken
from phikit.files import LineFile, write_json
from phikit.records import Document, Sample, read_records, write_records

_AT_ONCE = 1 << 19  # characters compared at once: their arrays stay in the cores' caches
_EXCERPT = 300  # characters of a rejected document that are kept for reading
_TRACKING = re.compile(r"utm_\w*|fbclid|gclid|ref|ref_src")
_MIX = np.uint64(0x9E3779B97F4A7C15)


def clean(
    folder: Path, shard: Shard, settings: dict[str, Any], items: str, chars_per_source: int
) -> None:
    """The unit of a shard: fills `folder`.

    Args:
        items: a Parquet file of evaluation items; "" for none.
        chars_per_source: no more of a source class is read when what passed holds so many; 0: all.
    """
    config = CorpusConfig.model_validate(settings)
    gathered = Gathered(config, decontaminator_of(items, config) if items else None)
    read: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    chars: Counter[str] = Counter()
    with LineFile(folder / "rejected.jsonl") as lines:

        def passed() -> Iterator[Document]:
            for document in read_shard(shard, config.reader):
                if isinstance(document, Broken):
                    rejected[f"(unreadable) {document.reason}"] += 1
                    lines.add({"reason": document.reason, "source": "(unreadable)",
                               "name": document.name,
                               "excerpt": document.excerpt[:_EXCERPT]})  # fmt: skip
                    continue
                if 0 < chars_per_source <= chars[document.source]:
                    continue
                read[document.source] += 1
                outcome = apply(document, config.filters)
                if isinstance(outcome, str):
                    rejected[f"{document.source} {outcome}"] += 1
                    lines.add(rejection_line(document, outcome))
                    continue
                chars[document.source] += len(outcome.text)
                gathered.add(outcome)
                yield outcome

        kept = write_records(folder / "documents.parquet", passed(), Document)
    gathered.save(folder)
    counts = {"read": dict(read), "kept": kept, "rejected": dict(rejected)}
    write_json(folder / "counts.json", {**counts, "bytes": gathered.bytes})


def rejection_line(document: Document, reason: str, **more: Any) -> dict[str, Any]:
    """A line of the account of what was rejected."""
    name = f"{document.meta.get('path', '')}:{document.meta.get('name', '')}"
    return {"reason": reason, "source": document.source, "name": name, "id": document.id,
            "excerpt": document.text[:_EXCERPT], **more}  # fmt: skip


def decontaminator_of(items: str, config: CorpusConfig) -> Decontaminator:
    """Compares with the evaluation items of a Parquet file."""
    samples = read_records(Path(items), Sample)
    return Decontaminator(((i.id, item_text(i)) for i in samples), config.decontamination)


class Gathered:
    """The arrays of a shard, a stretch of texts at a time."""

    def __init__(self, config: CorpusConfig, decontaminator: Decontaminator | None) -> None:
        self.config, self.decontaminator = config, decontaminator
        self.bytes = 0
        self._texts: list[str] = []
        self._chars = 0
        self._columns: dict[str, list[Any]] = {"texts": [], "sizes": [], "urls": []}
        self._keys: list[NDArray[np.uint64]] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._sharing: list[Sharing] = []
        self._begins: list[int] = []

    def add(self, document: Document) -> None:
        """Takes a document's hash, address, size, shingles and sketch into the columns."""
        data = document.text.encode()
        self._columns["texts"].append(_integer(data))
        self._columns["sizes"].append(len(document.text))
        self._columns["urls"].append(address_key(str(document.meta.get("url", ""))))
        self._texts.append(document.text)
        self._chars += len(document.text)
        self.bytes += len(data)
        if self._chars >= _AT_ONCE:
            self._compare()

    def _compare(self) -> None:
        if not self._texts:
            return
        keys, signatures = signatures_of(self._texts, self.config.dedup, seed=0)
        self._keys.append(keys)
        self._signatures.append(signatures)
        if self.decontaminator is not None:
            self._begins.append(len(self._columns["texts"]) - len(self._texts))
            self._sharing.append(self.decontaminator.sharing(self._texts))
        self._texts.clear()
        self._chars = 0

    def save(self, folder: Path) -> None:
        """Writes the columns into a unit's folder."""
        self._compare()
        hashes = self.config.dedup.hashes
        signatures = np.concatenate([np.zeros((0, hashes), np.uint32), *self._signatures])
        arrays: dict[str, NDArray[Any]] = {
            "texts": np.array(self._columns["texts"], np.uint64),
            "sizes": np.array(self._columns["sizes"], np.int32),
            "urls": np.array(self._columns["urls"], np.uint64),
            "keys": np.concatenate([np.zeros(0, np.uint64), *self._keys]),
            "signatures": signatures,
            "bands": band_keys(signatures, self.config.dedup.bands),
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        if self.decontaminator is not None:
            sharing = Sharing.join(self._sharing, self._begins)
            held: dict[str, Any] = {f.name: getattr(sharing, f.name) for f in fields(sharing)}
            np.savez(folder / "sharing.npz", **held)


def band_keys(signatures: NDArray[np.uint32], bands: int) -> NDArray[np.uint64]:
    """One integer for each band of each signature, [bands, documents]."""
    rows = signatures.shape[1] // bands
    result = np.zeros((bands, len(signatures)), np.uint64)
    for row in range(rows):
        part = signatures[:, row : bands * rows : rows].T.astype(np.uint64)
        result = (result ^ part) * _MIX
        result ^= result >> np.uint64(32)
    return result


def address_key(url: str) -> int:
    """One integer for a web address.

    Its scheme, the letter case of its host, fragments and what tracks visitors do not count.
    """
    if not url:
        return 0
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return 0
    host = (parts.hostname or "").removeprefix("www.")
    if port not in (None, 80, 443):
        host += f":{port}"
    # old pages are told apart by a query without a value: thread.php?1234
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = [(k, v) for k, v in pairs if not _TRACKING.fullmatch(k)]
    # a fragment that begins so names another page, which a script fetches
    fragment = parts.fragment if parts.fragment.startswith(("!", "/")) else ""
    plain = urlunsplit(("", host, parts.path.rstrip("/"), urlencode(sorted(query)), fragment))
    return _integer(plain.encode()) or 1


def _integer(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
