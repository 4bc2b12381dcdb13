"""TeX and Word files, by pandoc: to Markdown in which equations are TeX between dollars."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from phikit.data.reading import outside
from phikit.data.reading.base import BrokenFile, File, Read, ReaderConfig, check_archive, decode
from phikit.errors import PhikitError, how_to_install
from phikit.records import Document

_TEMPLATE = Path(__file__).with_name("document.pandoc")  # title and abstract are no part of a body
_TO = "markdown_strict+tex_math_dollars+pipe_tables+backtick_code_blocks+fenced_code_attributes"
_INPUTENC = re.compile(rb"^[^%\n]*\\usepackage\s*\[(\w+)\]\s*\{inputenc\}", re.MULTILINE)
_ENCODINGS = {
    b"latin1": "latin-1", b"latin2": "iso8859-2", b"latin9": "iso8859-15", b"ansinew": "cp1252",
    b"cp1252": "cp1252", b"cp1250": "cp1250", b"cp1251": "cp1251",
}  # fmt: skip


def read_tex(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A TeX file as one document; a part that another file includes is read as itself."""
    text = _tex(file.bytes(settings))
    if not text.strip():
        raise BrokenFile("no text", "TeX")
    return _document(file, settings, "latex+raw_tex", "tex", text)


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
    return _document(file, settings, "docx", "docx")


def _document(
    file: File, settings: ReaderConfig, form: str, kind: str, text: str = ""
) -> Iterator[Read]:
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
    text = outside.run(command, settings, "pandoc", address_space=None, given=text).strip() + "\n"
    yield Document(
        text=text,
        source="acquired",
        licence=settings.licence,
        meta={"path": file.name, "name": file.stem, "kind": kind},
    )
