"""What all readers share: their settings, a file with its limits, and what becomes of broken ones.

A reader is a generator (file, settings) → documents. What it cannot read it yields as `Broken`, or
raises as `BrokenFile`; `guarded` turns that, and the errors of the libraries behind it, into one
`Broken` for the file, so that no file can end a run.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import explain_os_errors
from phikit.records import Document
from phikit.stage import Config

PYTHON_STDLIB = "python-stdlib"
_OPEN: dict[str, Callable[..., Any]] = {
    "": open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst"}


class ReaderConfig(Config):
    """Where documents come from and how files are cut into them."""

    root: str = Field(
        default=PYTHON_STDLIB,
        description=f'"{PYTHON_STDLIB}" (the documented source of the Python that runs this), '
        '"hf:NAME" (a data set of the Hugging Face hub or a local folder of one), or a folder: '
        ".py and other source files, .txt/.md/.rst prose, .jsonl (one object per line: a text, "
        'and optionally "source", "licence", "language", "meta"), .parquet, .warc, .html, .tex, '
        ".epub, .pdf, .docx; those that are text also as .gz, .bz2, .xz or .zst",
    )
    licence: str = Field(default="", description="licence of the folder's documents that name none")
    text_field: str = Field(
        default="",
        description='field of .jsonl, Parquet and data sets that holds the text; by default "text" '
        'or, if there is none, "content"',
    )
    acquired_chars: int = Field(
        default=1500,
        gt=0,
        description='prose at least this long plays "acquired", shorter prose "web"',
    )
    docstring_chars: int = Field(
        default=200,
        gt=0,
        description="shorter docstrings of classes and functions are no documents",
    )
    split_chars: int = Field(
        default=6000,
        gt=0,
        description="a longer Python module is cut into its top-level functions and classes, and "
        "a longer class into its methods",
    )
    max_file_bytes: int = Field(
        default=50_000_000,
        gt=0,
        description="a larger file, or one that unpacks to more, is set aside; of files that are "
        "read piece by piece (.jsonl, .parquet, .warc) this holds for each piece",
    )
    seconds_per_file: float = Field(
        default=60.0, gt=0, description="a PDF, TeX or Word file that takes longer is set aside"
    )


@dataclass(frozen=True)
class Broken:
    """A file, or a part of one, that could not be read, and why."""

    name: str
    reason: str
    excerpt: str = ""


class BrokenFile(Exception):
    """A file cannot be read: (reason, excerpt)."""

    def __init__(self, reason: str, excerpt: str = "") -> None:
        super().__init__(reason, excerpt)
        self.reason, self.excerpt = reason, excerpt


Read = Document | Broken


@dataclass(frozen=True)
class File:
    """A file to read, or a part of a large one.

    Attributes:
        name: its path below the root, the same on every machine.
        part: (begin, end, number of the first line or row) of a part: bytes of .jsonl at the
            bounds of lines, or row groups of .parquet; None for the whole file.
    """

    path: Path
    name: str
    part: tuple[int, int, int] | None = None

    @property
    def packing(self) -> str:
        """The last suffix, if it is that of a compressed file."""
        suffix = self.path.suffix.lower()
        return suffix if suffix in COMPRESSED else ""

    @property
    def suffix(self) -> str:
        """The suffix in lower case, that of compression left out."""
        path = self.path.with_suffix("") if self.packing else self.path
        return path.suffix.lower()

    @property
    def stem(self) -> str:
        """The file's name without these suffixes."""
        return (self.path.with_suffix("") if self.packing else self.path).stem

    def open(self) -> IO[bytes]:
        """The unpacked bytes as a stream."""
        opened: Any  # one of four kinds of stream
        if self.packing == ".zst":
            opened = io.BufferedReader(pa.input_stream(str(self.path), compression="zstd"))
        else:
            opened = _OPEN[self.packing](self.path, "rb")
        return opened

    def bytes(self, settings: ReaderConfig) -> bytes:
        """All bytes, unpacked.

        Raises:
            BrokenFile: there are more than `max_file_bytes`; no more than that is unpacked.
        """
        most = settings.max_file_bytes
        with explain_os_errors(self.path, "reading"), self.open() as stream:
            data = stream.read(most + 1)
        if len(data) > most:
            raise BrokenFile("file too large", f"more than {most} bytes")
        return data


Reader = Callable[[File, ReaderConfig], Iterator[Read]]


def guarded(file: File, reader: Reader, settings: ReaderConfig) -> Iterator[Read]:
    """The file's documents; at the first error one `Broken` instead of all that is left.

    A library that is missing, a full disk and the like are no fault of the file and go through.
    """
    try:
        yield from reader(file, settings)
    except BrokenFile as e:
        yield Broken(file.name, e.reason, e.excerpt)
    except PhikitError:
        raise
    except UnicodeDecodeError as e:
        yield Broken(file.name, "bad encoding", str(e))
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile) as e:
        yield Broken(file.name, "damaged or cut off", f"{type(e).__name__}: {e}")
    except NotImplementedError as e:  # zipfile's word for a method of compression
        yield Broken(file.name, "compressed in an unknown way", str(e))
    except (RecursionError, MemoryError) as e:  # how parsers refuse absurd nesting
        yield Broken(file.name, "too deeply nested", type(e).__name__)
    except OSError as e:
        if e.errno not in (None, errno.EINVAL):  # a damaged archive names places before its begin
            raise
        yield Broken(file.name, "damaged or cut off", f"{type(e).__name__}: {e}")


def check_readable(path: Path) -> None:
    """Tells what can never be read from what is only away for now, which must stop the run.

    Raises:
        BrokenFile: a link that leads nowhere or in a circle, a pipe or the like, or a file that
            this user may not read.
    """
    try:
        mode = path.stat().st_mode
    except OSError as e:
        if path.is_symlink():
            raise BrokenFile("a link that leads nowhere", f"to {path.readlink()}") from e
        return
    if not stat.S_ISREG(mode):
        raise BrokenFile("no regular file", stat.filemode(mode))
    if not os.access(path, os.R_OK):
        raise BrokenFile("not allowed to read", stat.filemode(mode))


def whole(reader: Reader) -> Reader:
    """A reader of whose file all documents are taken, or none."""

    def read(file: File, settings: ReaderConfig) -> Iterator[Read]:
        yield from list(reader(file, settings))

    return read


def decode(data: bytes) -> str:
    """UTF-8, or what a byte order mark says; nothing is guessed.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    return data.decode("utf-16" if in_utf16(data) else "utf-8-sig")


def in_utf16(data: bytes) -> bool:
    """Whether bytes begin with its mark; in UTF-16 every space and line end has a zero byte."""
    return data.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in data


def prose_class(text: str, settings: ReaderConfig) -> str:
    """The part that prose of this length plays in the mixture."""
    return "acquired" if len(text) >= settings.acquired_chars else "web"


DAMAGED_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError)


def check_archive(file: File, settings: ReaderConfig, whole: bool = True) -> None:
    """Unpacks a zip archive to nowhere: a bomb is found before a library holds it in memory.

    Args:
        whole: whether a damaged member is an error.

    Raises:
        BrokenFile: its members hold more than `max_file_bytes` together.
    """
    left = settings.max_file_bytes
    with explain_os_errors(file.path, "reading"), zipfile.ZipFile(file.path) as archive:
        for member in archive.infolist():
            if member.flag_bits & 1:
                raise BrokenFile("encrypted", member.filename)
            try:
                with archive.open(member) as stream:
                    while piece := stream.read(1 << 20):
                        left -= len(piece)
                        if left < 0:
                            most = settings.max_file_bytes
                            raise BrokenFile("file too large", f"more than {most}")
            except DAMAGED_MEMBER:
                if whole:
                    raise
