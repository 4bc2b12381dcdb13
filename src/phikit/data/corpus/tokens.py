"""Token ids of a corpus: tokenised shard by shard, then mixed into one folder to train on."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phikit.chat.format import chat_format
from phikit.chat.tokenizer import Tokenizer
from phikit.data.mix import Share, mix, normalised
from phikit.data.shards import write_shards
from phikit.files import read_json, sha256_file, write_json
from phikit.records import Document, iter_records

_BATCH = 256  # texts tokenised at once
_DTYPE = np.dtype("<u4")


def tokenise(folder: Path, shard: str, tokenizer: str) -> None:
    """The unit of a shard: the ids of its documents, each with its end token.

    Leaves `tokens.bin` (uint32), `lengths.npy`, `classes.npy` (places in the names of
    `counts.json`).
    """
    encoder = Tokenizer.load(Path(tokenizer))
    end = np.array([chat_format(encoder).document_end_id], _DTYPE).tobytes()
    lengths, classes, names = array("q"), array("q"), []
    counts: Counter[str] = Counter()
    documents = iter_records(Path(shard) / "documents.parquet", Document)
    with (folder / "tokens.bin").open("wb") as out:
        while batch := list(islice(documents, _BATCH)):
            for document, ids in zip(
                batch, encoder.encode_arrays([d.text for d in batch]), strict=True
            ):
                if document.source not in names:
                    names.append(document.source)
                out.write(ids.astype(_DTYPE, copy=False).tobytes() + end)
                lengths.append(len(ids) + 1)
                classes.append(names.index(document.source))
                counts[document.source] += len(ids) + 1
    np.save(folder / "lengths.npy", np.array(lengths, np.int64))
    np.save(folder / "classes.npy", np.array(classes, np.int64))
    write_json(folder / "counts.json", {"names": names, "tokens": dict(counts)})


def mixture(
    folder: Path, shards: list[str], tokenizer: str, tokens: int, weights: dict[str, float],
    seed: int,
) -> None:  # fmt: skip
    """The unit that draws the mixture and writes it in the order of training.

    Args:
        tokens: in all, repetitions included; 0 for every document once, in a shuffled order.
        weights: of each source class.
    """
    pool = _Pool(shards)
    if tokens:
        present = {n: int(pool.lengths[pool.classes == i].sum()) for i, n in enumerate(pool.names)}
        parts = normalised(weights, present)
        shares = [
            Share(n, np.flatnonzero(pool.classes == pool.names.index(n)), tokens * w)
            for n, w in parts.items()
        ]
    else:
        shares = [
            Share(
                n, np.flatnonzero(pool.classes == i), float(pool.lengths[pool.classes == i].sum())
            )
            for i, n in enumerate(pool.names)
        ]
    drawn = mix(pool.lengths, shares, seed)
    loaded = Tokenizer.load(Path(tokenizer))
    written = write_shards(
        folder,
        pool.read(drawn.order),
        drawn.share,
        [share.name for share in shares],
        {"vocab_size": loaded.vocab_size, "document_end_id": chat_format(loaded).document_end_id,
         "tokenizer": sha256_file(Path(tokenizer) / "tokenizer.json")},
    )  # fmt: skip
    write_json(folder / "mixture.json", {"tokens": written, "sources": drawn.stats})


class _Pool:
    """Tokenised shards as one, with some 30 bytes in memory for each document."""

    def __init__(self, shards: list[str]) -> None:
        self.paths = [Path(shard) / "tokens.bin" for shard in shards]
        lengths, classes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        found = [read_json(Path(shard) / "counts.json")["names"] for shard in shards]
        self.names = sorted({name for names in found for name in names})
        for shard, names in zip(shards, found, strict=True):
            number = np.array([self.names.index(name) for name in names], np.int64)
            lengths.append(np.load(Path(shard) / "lengths.npy"))
            classes.append(number[np.load(Path(shard) / "classes.npy")] if names else classes[0])
        self.lengths, self.classes = np.concatenate(lengths), np.concatenate(classes)
        self.shard_bounds = np.cumsum([0, *map(len, lengths[1:])])
        # where each document begins in its own shard's file
        starts = np.concatenate([[0], np.cumsum(self.lengths)])
        offsets = starts[self.shard_bounds[:-1]]
        self.starts = starts[:-1] - np.repeat(offsets, np.diff(self.shard_bounds))

    def read(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint32]]:
        """The ids of documents in the given order, read where they lie."""
        shards = np.searchsorted(self.shard_bounds, order, side="right") - 1
        size = _DTYPE.itemsize
        files = [path.open("rb", buffering=0) for path in self.paths]
        try:
            for document, shard in zip(order.tolist(), shards.tolist(), strict=True):
                files[shard].seek(int(self.starts[document]) * size)
                yield np.frombuffer(files[shard].read(int(self.lengths[document]) * size), _DTYPE)
        finally:
            for file in files:
                file.close()
