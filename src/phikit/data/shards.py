"""Training tokens on the disk: documents one after the other, in the order of training.

`tokens.bin` holds the ids (uint32, little-endian), each document followed by its end token;
`bounds.npy` where each document begins (int64, one entry more than documents); `sources.npy` the
number of each document's share of the mixture (uint8); `index.json` the shares' names and totals.
"""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phikit.errors import PhikitError
from phikit.files import (
    explain_os_errors,
    fsync_path,
    read_json,
    temporary_name,
    write_atomic,
    write_json,
)

_DTYPE = np.dtype("<u4")
_CHUNK = 1 << 20  # tokens written at once


class Pool:
    """Tokenised documents, appended to a scratch file and read back at random.

    The ids lie on the disk; in memory there are some 30 bytes per document.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []
        self._lengths = array("q")
        self._classes = array("B")
        with explain_os_errors(path, "writing"):
            self._file = path.open("wb")

    def add(self, source: str, documents: Iterable[Sequence[int] | NDArray[np.uint32]]) -> None:
        """Appends documents of one source class."""
        if source not in self.names:
            self.names.append(source)
        number = self.names.index(source)
        with explain_os_errors(self.path, "writing"):
            for ids in documents:
                self._file.write(np.asarray(ids, _DTYPE).tobytes())
                self._lengths.append(len(ids))
                self._classes.append(number)

    def finish(self) -> None:
        """After the last `add`, before anything is read."""
        with explain_os_errors(self.path, "writing"):
            self._file.close()
        self.lengths = np.array(self._lengths, np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.classes = np.array(self._classes, np.int64)

    def of(self, source: str) -> NDArray[np.int64]:
        """The numbers of a source class's documents."""
        return np.flatnonzero(self.classes == self.names.index(source))

    def read(self, order: NDArray[np.int64]) -> Iterator[NDArray[np.uint32]]:
        """The ids of documents, in the given order."""
        ids = np.memmap(self.path, _DTYPE, "r") if self.starts[-1] else np.zeros(0, _DTYPE)
        for document in order:
            yield ids[self.starts[document] : self.starts[document + 1]]


def write_shards(
    directory: Path,
    documents: Iterable[NDArray[np.uint32]],
    shares: NDArray[np.integer],
    names: Sequence[str],
    index: dict[str, Any],
) -> int:
    """Writes the files; `index.json` comes last and makes them whole. Returns the token count."""
    temporary = temporary_name(directory / "tokens.bin")
    bounds = [0]
    with explain_os_errors(directory / "tokens.bin", "writing"):
        with temporary.open("wb", buffering=4 * _CHUNK) as out:
            for ids in documents:
                out.write(ids.astype(_DTYPE, copy=False).tobytes())
                bounds.append(bounds[-1] + len(ids))
        fsync_path(temporary)
        temporary.replace(directory / "tokens.bin")
    _save(directory / "bounds.npy", np.array(bounds, np.int64))
    _save(directory / "sources.npy", np.asarray(shares, np.uint8))
    write_json(
        directory / "index.json",
        {**index, "sources": list(names), "documents": len(bounds) - 1, "tokens": bounds[-1]},
    )
    return bounds[-1]


def _save(path: Path, values: NDArray[Any]) -> None:
    content = io.BytesIO()
    np.save(content, values)
    write_atomic(path, content.getvalue())


class Shards:
    """Shards on the disk, read through a memory map.

    Attributes:
        index: what `index.json` says.
        sources: the names of the mixture's shares.
        source_of: for each document the number of its share.
        bounds: where each document begins in the tokens.

    Raises:
        PhikitError: a file is missing or does not fit the others.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.index: dict[str, Any] = read_json(directory / "index.json")
        self.sources: list[str] = self.index["sources"]
        self.bounds = self._load("bounds.npy")
        self.source_of = self._load("sources.npy")
        path = directory / "tokens.bin"
        with explain_os_errors(path, "reading"):
            size = path.stat().st_size
            tokens, documents = self.index["tokens"], self.index["documents"]
            whole = size == _DTYPE.itemsize * tokens and len(self.source_of) == documents
            if not whole or len(self.bounds) != documents + 1 or self.bounds[-1] != tokens:
                raise PhikitError(
                    f"{directory}: corrupt shards: index.json says {tokens:,} tokens in "
                    f"{documents:,} documents; tokens.bin has {size // _DTYPE.itemsize:,} tokens, "
                    f"bounds.npy {len(self.bounds) - 1:,} documents",
                    "delete this folder and run the same command again: it will be made anew",
                )
            self.tokens = np.memmap(path, _DTYPE, "r") if tokens else np.zeros(0, _DTYPE)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def documents(self) -> Iterator[NDArray[np.uint32]]:
        """The ids of every document, in the order of training; its end token is the last."""
        for begin, end in zip(self.bounds[:-1].tolist(), self.bounds[1:].tolist(), strict=True):
            yield self.tokens[begin:end]

    def _load(self, name: str) -> NDArray[Any]:
        path = self.directory / name
        with explain_os_errors(path, "reading"):
            try:
                return np.load(path, allow_pickle=False)
            except (ValueError, EOFError) as e:
                raise PhikitError(
                    f"{path}: corrupt file ({e})",
                    "delete this folder and run the same command again: it will be made anew",
                ) from e
