"""Text files and JSON lines."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

from phikit.data.reading.base import (
    Broken,
    BrokenFile,
    File,
    Read,
    ReaderConfig,
    decode,
    in_utf16,
    prose_class,
)
from phikit.files import canonical_json, explain_os_errors
from phikit.records import Document

PROSE = {".txt", ".md", ".rst"}
CODE = {".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".js", ".rb", ".rs", ".sh", ".ts"}
_TEXT_FIELDS = ("text", "content")
_AT_ONCE = 1 << 20  # bytes of a line that is passed over
_PIECE = 1 << 16  # bytes that are put into UTF-8 at once
_BOMB = 20  # times `max_file_bytes`: no more of a packed line is passed over
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
    """One document per line; a bad line is set aside alone, so the file is never read whole.

    UTF-8, or UTF-16 with its mark.
    """
    with explain_os_errors(file.path, "reading"), _lines(file) as lines:
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
                begin += _pass_over(line, lines, file, where, settings)
                yield Broken(where, "line too large", f"more than {settings.max_file_bytes} bytes")
                continue
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                yield row_document(json.loads(line), file.name, where, settings)
            except (ValueError, RecursionError) as e:
                yield Broken(where, "bad line", f"{type(e).__name__}: {e}")


def has_utf16_lines(file: File) -> bool:
    """Whether the file is in UTF-16, in which a line's end is more than the byte of one."""
    with file.open() as stream:
        return in_utf16(stream.read(4))  # the mark, and the brace of an object


def _lines(file: File) -> IO[bytes]:
    """The file's lines in UTF-8."""
    opened = file.open()
    if file.part is None and has_utf16_lines(file):
        return io.BufferedReader(_FromUtf16(opened))
    return opened


class _FromUtf16(io.RawIOBase):
    """UTF-16 as UTF-8, piece by piece; what is none is kept as such, to spoil its line alone."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-16")("surrogatepass")
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            piece = self._stream.read(_PIECE)
            try:
                text = self._decoder.decode(piece, final=not piece)
            except UnicodeDecodeError:  # half a character is left at the end
                text = "\ufffd"
                self._decoder.reset()
            if not piece and not text:
                return 0
            self._waiting = text.encode("utf-8", "surrogatepass")
        count = min(len(buffer), len(self._waiting))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _pass_over(
    line: bytes, lines: IO[bytes], file: File, where: str, settings: ReaderConfig
) -> int:
    """Reads on to the end of a line that begins so; returns how many bytes that took.

    Raises:
        BrokenFile: an unpacking stream goes on and on, as a bomb's does.
    """
    passed = 0
    while line and not line.endswith(b"\n"):
        line = lines.readline(_AT_ONCE)
        passed += len(line)
        if file.packing and passed > _BOMB * settings.max_file_bytes:
            raise BrokenFile("line too large", f"{where}: more than {passed} bytes unpacked")
    return passed


def row_document(row: Any, path: str, where: str, settings: ReaderConfig) -> Document:
    """The document that a row of a table or a line of JSON is; its other fields become `meta`.

    Raises:
        ValueError: it is none; for the caller to set aside.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"an object with a text is needed, not {row!r:.80}")
    field = _text_field(row, settings)
    if field not in row:
        raise ValueError(f"no field {field!r} (text_field) among {sorted(map(str, row))}")
    text = row[field]
    if isinstance(text, bytes):
        text = text.decode()
    if not isinstance(text, str):
        raise ValueError(f"field {field!r} holds no text but {text!r:.80}")
    named = row.get("meta") or {}
    if not isinstance(named, Mapping):
        named = {"meta": named}
    rest = {k: v for k, v in row.items() if k not in _OWN and _plain(v) and k != field}
    meta = {"name": where, "kind": "text", **rest, **_jsonable(named), "path": path}
    document = Document(
        text=text,
        source=str(row.get("source") or prose_class(text, settings)),
        licence=str(row.get("licence") or row.get("license") or settings.licence),
        language=str(row.get("language") or "en"),
        meta=meta,
    )
    # JSON can spell half of a surrogate pair, which no file can hold
    for value in (text, document.source, document.licence, document.language, canonical_json(meta)):
        value.encode()
    return document


def _jsonable(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same without what JSON has no word for (dates, bytes): that as text."""
    return dict(json.loads(json.dumps(value, default=str)))


def _text_field(row: Mapping[str, Any], settings: ReaderConfig) -> str:
    if settings.text_field:
        return settings.text_field
    return next((name for name in _TEXT_FIELDS if name in row), _TEXT_FIELDS[0])


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) <= 2000
