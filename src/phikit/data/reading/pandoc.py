"""TeX and Word files, by pandoc: to Markdown in which equations are TeX between dollars."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

from phikit.data.reading import outside
from phikit.data.reading.base import (
    Broken,
    BrokenFile,
    File,
    Read,
    ReaderConfig,
    check_archive,
    decode,
)
from phikit.data.reading.tex import REFUSED, salvage
from phikit.errors import PhikitError, how_to_install
from phikit.records import Document

_TEMPLATE = Path(__file__).with_name("document.pandoc")  # title and abstract are no part of a body
_TO = "markdown_strict+tex_math_dollars+pipe_tables+backtick_code_blocks+fenced_code_attributes"
_TOLD = 500  # characters of a part that is left out, and of why
_INPUTENC = re.compile(rb"^[^%\n]*\\usepackage\s*\[(\w+)\]\s*\{inputenc\}", re.MULTILINE)
_ENCODINGS = {
    b"latin1": "latin-1", b"latin2": "iso8859-2", b"latin9": "iso8859-15", b"ansinew": "cp1252",
    b"cp1252": "cp1252", b"cp1250": "cp1250", b"cp1251": "cp1251",
}  # fmt: skip


def read_tex(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A TeX file as one document; a part that another file includes is read as itself.

    If pandoc refuses it, the parts that it refuses are set aside, each with its line, and the rest
    is the document, whose `meta` says how many parts it lacks (`parts_left_out`).
    """
    source = _tex(file.bytes(settings))
    if not source.strip():
        raise BrokenFile("no text", "TeX")
    until = time.monotonic() + settings.seconds_per_file

    def convert(text: str) -> str:
        left = settings.model_copy(update={"seconds_per_file": until - time.monotonic()})
        if left.seconds_per_file <= 0:
            raise BrokenFile("takes too long", f"more than {settings.seconds_per_file:g} s")
        return _convert(file, left, "latex+raw_tex", text)

    try:
        yield _document(file, settings, "tex", convert(source))
        return
    except BrokenFile as e:
        if e.reason != REFUSED:
            raise
    rest, refused = salvage(source, convert)
    text = _convert(file, settings, "latex+raw_tex", rest)
    yield _document(file, settings, "tex", text, parts_left_out=len(refused))
    for part in refused:
        excerpt = f"{part.said}: {part.source.strip()}"
        yield Broken(f"{file.name}:{part.line}", "a part that pandoc cannot read", excerpt[:_TOLD])


def _tex(data: bytes) -> str:
    """A TeX file's text, by the encoding that it declares where it is no UTF-8."""
    try:
        return decode(data)
    except UnicodeDecodeError:
        declared = _INPUTENC.search(data)
        if declared is None or declared[1] not in _ENCODINGS:
            raise
        return data.decode(_ENCODINGS[declared[1]])


def read_docx(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A Word file as one document."""
    check_archive(file, settings)
    yield _document(file, settings, "docx", _convert(file, settings, "docx"))


def _convert(file: File, settings: ReaderConfig, form: str, text: str = "") -> str:
    """What pandoc makes of the file, or of a text."""
    try:
        import pypandoc
    except ImportError as e:
        raise PhikitError(
            f"{file.name}: reading TeX and Word needs pypandoc-binary", how_to_install("data")
        ) from e
    # -M bounds pandoc's own heap; its address space is a terabyte that it never touches
    command = [
        pypandoc.get_pandoc_path(), "+RTS", "-M1g", "-RTS", "--sandbox", "--wrap=none",
        f"--template={_TEMPLATE}", f"--from={form}", f"--to={_TO}",
        "--", "-" if text else str(file.path),
    ]  # fmt: skip
    return outside.run(command, settings, "pandoc", address_space=None, given=text).strip() + "\n"


def _document(file: File, settings: ReaderConfig, kind: str, text: str, **more: int) -> Document:
    return Document(
        text=text,
        source="acquired",
        licence=settings.licence,
        meta={"path": file.name, "name": file.stem, "kind": kind, **more},
    )
