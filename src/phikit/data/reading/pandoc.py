"""TeX and Word files, by pandoc: to Markdown in which equations are TeX between dollars."""

from __future__ import annotations

from collections.abc import Iterator

from phikit.data.reading import outside
from phikit.data.reading.base import BrokenFile, File, Read, ReaderConfig, check_archive, decode
from phikit.errors import PhikitError
from phikit.records import Document

_TO = "markdown_strict+tex_math_dollars+pipe_tables+backtick_code_blocks+fenced_code_attributes"


def read_tex(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A TeX file as one document; a part that another file includes is read as itself."""
    text = decode(file.bytes(settings))
    if not text.strip():
        raise BrokenFile("no text", "TeX")
    return _document(file, settings, "latex+raw_tex", "tex")


def read_docx(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A Word file as one document."""
    check_archive(file, settings)
    return _document(file, settings, "docx", "docx")


def _document(file: File, settings: ReaderConfig, form: str, kind: str) -> Iterator[Read]:
    try:
        import pypandoc
    except ImportError as e:
        raise PhikitError(
            f"{file.name}: reading TeX and Word needs pypandoc-binary", "pip install 'phikit[data]'"
        ) from e
    # -M bounds pandoc's own heap; its address space is a terabyte that it never touches
    command = [
        pypandoc.get_pandoc_path(), "+RTS", "-M1g", "-RTS", "--sandbox", "--wrap=none",
        f"--from={form}", f"--to={_TO}", "--", str(file.path),
    ]  # fmt: skip
    text = outside.run(command, settings, "pandoc", address_space=None)
    yield Document(
        text=text,
        source="acquired",
        licence=settings.licence,
        meta={"path": file.name, "name": file.stem, "kind": kind},
    )
