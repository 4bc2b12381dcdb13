"""The stage `data.semantic`: of documents that say the same in other words, the first stays.

Abbas et al. 2023 (SemDeDup): documents whose embeddings' cosine reaches a threshold are
duplicates. Here each is compared with the kept ones before it, so the result depends on the
documents and their order alone, and no chain of small steps joins what is not alike. Vectors lie on
the disk; memory holds a stretch of them. Time is quadratic in documents: it is for what other
filters left, or for a part of a corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from phikit.data.vectors import MODEL, Encodes, Vectors, load_encoder
from phikit.files import LineFile
from phikit.records import Document, iter_records, write_records
from phikit.stage import Config, Context, Estimate, Stage

_BLOCK = 1024  # documents compared at once
_STRETCH = 1 << 13  # kept vectors compared with at once: of 384 numbers 13 MB, and 33 of cosines
_EXCERPT = 1000  # characters of both texts in the ledger


class SemanticConfig(Config):
    """How alike the meanings of two documents may be."""

    threshold: float = Field(
        default=0.95, gt=0, le=1, description="cosine from which two are duplicates"
    )
    encoder: str = Field(
        default=MODEL, description="a sentence encoder: a folder, or what was fetched by this name"
    )


def _most_alike(vectors: Vectors, held: Vectors) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """For each vector the greatest cosine, and the first of `held` that has it."""
    cosines = vectors @ held.T
    np.round(cosines, 4, out=cosines)
    place = cosines.argmax(1)
    return cosines[np.arange(len(vectors)), place], place


class _Kept:
    """The vectors of documents that stay, in a file, and their numbers."""

    def __init__(self, path: Path, width: int) -> None:
        self._path, self._width = path, width
        self.numbers: list[int] = []
        self._file = path.open("wb")

    def add(self, numbers: list[int], vectors: Vectors) -> None:
        self.numbers += numbers
        self._file.write(vectors.tobytes())
        self._file.flush()

    def nearest(self, vectors: Vectors) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """For each vector the greatest cosine, and the first document that has it."""
        best, number = np.zeros(len(vectors), np.float32), np.zeros(len(vectors), np.int64)
        row = 4 * self._width
        with self._path.open("rb") as file:
            for first in range(0, len(self.numbers), _STRETCH):
                held = np.frombuffer(file.read(_STRETCH * row), np.float32)
                here, place = _most_alike(vectors, held.reshape(-1, self._width))
                numbers = np.array(self.numbers[first : first + _STRETCH])
                number = np.where(here > best, numbers[place], number)
                best = np.maximum(best, here)
        return best, number

    def close(self) -> None:
        self._file.close()
        self._path.unlink()


def duplicates(
    documents: Iterator[Document], encoder: Encodes, threshold: float, scratch: Path
) -> Iterator[tuple[int, int, float]]:
    """Documents that say what an earlier, kept one says: (number, the kept one's, cosine).

    Args:
        scratch: a file for vectors, removed at the end.
    """
    kept = _Kept(scratch, encoder.width)
    first = 0
    try:
        while block := list(islice(documents, _BLOCK)):
            vectors = encoder.vectors([d.text for d in block])
            best, number = kept.nearest(vectors)
            among = np.round(vectors @ vectors.T, 4)
            stay: list[int] = []
            for row in range(len(block)):
                if stay and (own := among[row, stay]).max() > best[row]:
                    best[row], number[row] = own.max(), first + stay[int(own.argmax())]
                if best[row] >= threshold:
                    yield first + row, int(number[row]), float(best[row])
                else:
                    stay.append(row)
            kept.add([first + row for row in stay], vectors[stay])
            first += len(block)
    finally:
        kept.close()


def run_semantic(
    ctx: Context, settings: SemanticConfig, inputs: Mapping[str, Path]
) -> dict[str, Any]:
    """Writes the documents that stay; `semantic.jsonl` shows the others beside what they repeat."""
    encoder = load_encoder(settings.encoder)
    path = inputs["documents"] / "documents.parquet"
    found = {
        number: (of, cosine)
        for number, of, cosine in duplicates(
            iter_records(path, Document), encoder, settings.threshold, ctx.dir / ".vectors"
        )
    }
    wanted = {of for of, _ in found.values()}
    originals: dict[int, tuple[str, str]] = {}  # id and excerpt

    with LineFile(ctx.dir / "semantic.jsonl") as ledger:

        def stay() -> Iterator[Document]:
            for number, document in enumerate(iter_records(path, Document)):
                if number in wanted:  # it comes before all that repeat it
                    originals[number] = document.id, document.text[:_EXCERPT]
                if number not in found:
                    yield document
                    continue
                of, cosine = found[number]
                name, text = originals[of]
                ledger.add(
                    {"document": document.id, "of": name, "cosine": round(cosine, 4),
                     "text": document.text[:_EXCERPT], "of_text": text}
                )  # fmt: skip

        kept = write_records(ctx.dir / "documents.parquet", stay(), Document)
    return {"documents": kept, "semantic duplicates": len(found)}


SEMANTIC: Stage[SemanticConfig] = Stage(
    verb="data.semantic",
    config=SemanticConfig,
    run=run_semantic,
    inputs=("documents",),
    estimate=lambda _: Estimate("all documents of its input, some 20 a second and core", 600),
    help="remove documents that say the same as an earlier one in other words",
)
