"""Documents out of files: Python's own library, or files of one's own, of many kinds.

Readers stream: they yield one `Document` after the other, or a `Broken` for a file (or a line, a
row, a page) that cannot be read, which is thereby set aside and counted instead of ending the run.
The order of the files depends on their paths alone. Which reader a file gets its content decides
where that tells (a PDF named .txt is read as a PDF), and otherwise its name.

Each piece of text goes under the source class of the pretraining mixture whose part it plays
(technical report, Table 5): web pages and short pieces of documentation are the "web", books,
papers and long expositions the "acquired", source files and functions "code".
"""

from __future__ import annotations

import hashlib
import os
import re
import sysconfig
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from phikit.data.reading.base import (
    PYTHON_STDLIB,
    Broken,
    BrokenFile,
    File,
    Read,
    Reader,
    ReaderConfig,
    check_readable,
    guarded,
    whole,
)
from phikit.data.reading.epub import read_epub
from phikit.data.reading.html import read_html
from phikit.data.reading.pandoc import read_docx, read_tex
from phikit.data.reading.pdf import read_pdf
from phikit.data.reading.plain import CODE, PROSE, read_json_lines, read_text
from phikit.data.reading.python_source import read_python, read_topics
from phikit.data.reading.tables import HUGGING_FACE, read_hugging_face, read_parquet
from phikit.data.reading.warc import read_warc
from phikit.errors import PhikitError
from phikit.files import explain_os_errors

__all__ = ["PYTHON_STDLIB", "Broken", "Read", "ReaderConfig", "read", "read_file", "read_stdlib"]

# Not part of the library proper: tests hold broken files on purpose, `encodings` holds tables.
STDLIB_SKIP = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}

BY_SUFFIX: dict[str, Reader] = {
    ".py": whole(read_python),
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
    ".warc": read_warc,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".tex": read_tex,
    ".epub": whole(read_epub),
    ".pdf": read_pdf,
    ".docx": read_docx,
    **dict.fromkeys(PROSE | CODE, read_text),
}
_HEAD = 1024  # bytes by which a file's kind is told
_PACKED_FORMS = {".parquet", ".epub", ".pdf", ".docx", ".tex"}  # their libraries want a plain file
_HTML = re.compile(
    rb"\s*(?:<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S
)


def read(settings: ReaderConfig) -> Iterator[Read]:
    """All documents of the configured root.

    Raises:
        PhikitError: the folder is not there.
    """
    if settings.root.startswith(HUGGING_FACE):
        return read_hugging_face(settings.root.removeprefix(HUGGING_FACE), settings)
    if settings.root == PYTHON_STDLIB:
        return read_stdlib(Path(sysconfig.get_path("stdlib")), settings)
    root = Path(settings.root)
    if not root.is_dir():
        raise PhikitError(
            f"root {settings.root!r} is no folder",
            f'give a folder of documents, or "{PYTHON_STDLIB}"',
        )
    return read_folder(root, settings)


def read_stdlib(root: Path, settings: ReaderConfig) -> Iterator[Read]:
    """The language reference as prose, and every module's documentation and code."""
    settings = settings.model_copy(update={"licence": "PSF-2.0"})
    topics = File(root / "pydoc_data" / "topics.py", "pydoc_data/topics.py")
    if topics.path.exists():
        yield from guarded(topics, whole(read_topics), settings)
    for file in files([root], skip=STDLIB_SKIP):
        if file.suffix == ".py":
            yield from read_file(file, settings)


def read_folder(root: Path, settings: ReaderConfig) -> Iterator[Read]:
    """A user's own folder; files of other kinds than `ReaderConfig.root` names are passed over."""
    for file in files([root]):
        yield from read_file(file, settings)


def read_file(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """The documents of one file; none, if it is of no kind that can be read."""
    return guarded(file, _read_as_what_it_is, settings)


def _read_as_what_it_is(file: File, settings: ReaderConfig) -> Iterator[Read]:
    reader = _reader(file)
    if reader is not None:
        yield from reader(file, settings)


def _reader(file: File) -> Reader | None:
    """The reader of a file; None to pass it over.

    Raises:
        BrokenFile: its name says one thing, and its content shows that it is something else.
    """
    named = BY_SUFFIX.get(file.suffix)
    if named is None:
        return None
    check_readable(file.path)
    if named is read_warc and file.packing:
        return named  # reads past a damaged beginning
    with explain_os_errors(file.path, "reading"), file.open() as stream:
        head = stream.read(_HEAD)
    kind = _kind(file, head)
    if file.packing and (kind or file.suffix) in _PACKED_FORMS:
        raise BrokenFile("compressed", f"unpack it first: {file.path.name}")
    if kind is not None:
        return BY_SUFFIX[kind]
    if file.suffix in (".pdf", ".parquet", ".epub", ".docx") or (
        b"\0" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")) and named is read_text
    ):
        raise BrokenFile("not what its name says", repr(head[:20]))
    return named


def _kind(file: File, head: bytes) -> str | None:
    """The suffix that a file should have, where its first bytes tell."""
    if head.startswith(b"%PDF-"):
        return ".pdf"
    if head.startswith(b"PAR1"):
        return ".parquet"
    if head.startswith(b"WARC/"):
        return ".warc"
    if head.startswith(b"PK\x03\x04"):
        return _archive_kind(file)
    if file.suffix not in (".py", *CODE) and _HTML.match(head):
        return ".html"
    return None


def _archive_kind(file: File) -> str | None:
    with zipfile.ZipFile(file.path) as archive:
        names = set(archive.namelist())
    if "META-INF/container.xml" in names:
        return ".epub"
    return ".docx" if "word/document.xml" in names else None


def files(roots: Sequence[Path], skip: set[str] | None = None) -> list[File]:
    """All files below folders, or named, in the order of a hash of their names below them.

    Any beginning of it is a fair sample; the order does not depend on the folder's place.

    Raises:
        PhikitError: one of the paths is not there, or the same name comes from two of them.
    """
    passed = {"__pycache__", ".git", *(skip or ())}
    found: dict[str, Path] = {}
    for root in roots:
        if not root.exists():
            raise PhikitError(f"{root} is not there", "give files or folders of documents")
        for path in [root] if root.is_file() else _walk(root, passed):
            name = path.name if root.is_file() else path.relative_to(root).as_posix()
            if found.setdefault(name, path) != path:
                raise PhikitError(
                    f"{found[name]} and {path} would both be named {name!r}",
                    "give the folder above both",
                )
    names = {hashlib.blake2b(os.fsencode(n), digest_size=16).digest(): n for n in found}
    return [File(found[name], name) for _, name in sorted(names.items())]


def _walk(root: Path, passed: set[str]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in passed]
        yield from (Path(folder) / name for name in names)
