"""Text files and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from phikit.data.reading.base import (
    Broken,
    BrokenFile,
    File,
    Read,
    ReaderConfig,
    decode,
    prose_class,
)
from phikit.files import explain_os_errors
from phikit.records import Document

PROSE = {".txt", ".md", ".rst"}
CODE = {".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".js", ".rb", ".rs", ".sh", ".ts"}
_TEXT_FIELDS = ("text", "content")
_OWN = {"text", "source", "licence", "license", "language", "meta", "id", "parents"}


def read_text(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A file of prose or of source code as one document."""
    text = decode(file.bytes(settings))
    prose = file.suffix in PROSE
    yield Document(
        text=text,
        source=prose_class(text, settings) if prose else "code",
        licence=settings.licence,
        meta={"path": file.name, "name": file.stem, "kind": "text" if prose else "file"},
    )


def read_json_lines(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """One document per line; a bad line is set aside alone, so the file is never read whole."""
    with explain_os_errors(file.path, "reading"), file.open() as lines:
        begin, end, first = file.part or (0, None, 1)
        if file.part is not None:  # an unpacking stream cannot seek
            lines.seek(begin)
        number = first - 1
        while (end is None or begin < end) and (
            line := lines.readline(settings.max_file_bytes + 1)
        ):
            begin += len(line)
            number += 1
            where = f"{file.name}:{number}"
            if len(line) > settings.max_file_bytes:
                raise BrokenFile("line too large", where)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield row_document(json.loads(line), file.name, where, settings)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
                yield Broken(where, "bad line", f"{type(e).__name__}: {e}")


def row_document(row: Any, path: str, where: str, settings: ReaderConfig) -> Document:
    """The document that a row of a table or a line of JSON is; its other fields become `meta`.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none; for the caller to set aside.
    """
    text = row[_text_field(row, settings)]
    text.encode()  # JSON can spell half of a surrogate pair, which is no text
    rest = {k: v for k, v in row.items() if k not in _OWN and _plain(v) and v is not text}
    return Document(
        text=text,
        source=str(row.get("source") or prose_class(text, settings)),
        licence=str(row.get("licence") or row.get("license") or settings.licence),
        language=str(row.get("language") or "en"),
        meta={"name": where, "kind": "text", **rest, **(row.get("meta") or {}), "path": path},
    )


def _text_field(row: Mapping[str, Any], settings: ReaderConfig) -> str:
    if settings.text_field:
        return settings.text_field
    return next((name for name in _TEXT_FIELDS if name in row), _TEXT_FIELDS[0])


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) <= 2000
