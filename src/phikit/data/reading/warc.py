"""WARC archives of crawled pages, record by record, by fastwarc."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from typing import IO, Any

from phikit.data.reading import frames, streams
from phikit.data.reading.base import Broken, BrokenFile, File, Read, ReaderConfig
from phikit.data.reading.html import known_encoding, page_text
from phikit.data.reading.members import GZIP, Packing, members
from phikit.errors import PhikitError, how_to_install
from phikit.records import Document

_FIRST = b"WARC/"
_GZIP = b"\x1f\x8b"
_DAMAGE = (OSError, ValueError, EOFError, RuntimeError, lzma.LZMAError)
_PAGES = ("text/html", "application/xhtml+xml")


def read_warc(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """Every page that a server sent with status 200; one that cannot be read is set aside alone.

    Records without an HTTP header (the older kind of archive) count as pages. What is neither HTML
    nor plain text (pictures, scripts) is passed over. Packed by gzip or zstd record by record, a
    damaged record costs itself alone; packed otherwise or not at all, what follows it. An xz stream
    may hold some records: then those costs what follows in its stream.

    Raises:
        BrokenFile: the archive is damaged; the pages before that have been yielded.
        PhikitError: fastwarc is missing.
    """
    try:
        import fastwarc  # noqa: F401
    except ImportError as e:
        raise PhikitError("reading WARC needs fastwarc", how_to_install("data")) from e
    if file.packing == ".xz":
        with file.path.open("rb") as packed:
            if streams.by_record(packed, _FIRST):
                yield from _read_members(packed, streams.XZ, file, settings)
                return
    with file.open() if file.packing in (".xz", ".bz2") else file.path.open("rb") as stream:
        packing = _packing(stream, file)
        if packing is GZIP or (packing and frames.by_record(stream, packing, _FIRST)):
            yield from _read_members(stream, packing, file, settings)
        else:
            stream.seek(0)
            yield from _read_as_one(frames.as_one(stream) if packing else stream, file, settings)


def _packing(stream: IO[bytes], file: File) -> Packing | None:
    head = stream.read(len(_FIRST))
    if head.startswith(_GZIP) or (file.packing == ".gz" and head != _FIRST):
        return GZIP
    if frames.MARK.match(head) or (file.packing == ".zst" and head != _FIRST):
        return frames.zstd(stream)
    return None


def _records(stream: Any) -> Iterator[Any]:
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    kinds = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    yield from ArchiveIterator(stream, record_types=kinds, parse_http=False)


def _read_as_one(stream: Any, file: File, settings: ReaderConfig) -> Iterator[Read]:
    """The pages of an archive as one stream of bytes, up to where it is damaged."""
    seen = 0
    try:
        for record in _records(stream):
            seen += 1
            yield from _page(record, file, settings)
    except _DAMAGE as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise BrokenFile("damaged or cut off", f"after {seen} records: {e}") from e
    if not seen:
        raise BrokenFile("no records", "not a WARC archive, or an empty one")


def _read_members(
    stream: IO[bytes], packing: Packing, file: File, settings: ReaderConfig
) -> Iterator[Read]:
    """The pages of an archive packed record by record; a damaged member is set aside alone.

    Its last record is held back until the member has been found whole: a wrong checksum is only
    seen at the end.
    """
    seen = 0
    for member in members(stream, packing, _FIRST):
        last: list[Read] = []
        said = ""
        try:
            for record in _records(member) if not member.damage else ():
                yield from last
                seen += 1
                last = list(_page(record, file, settings))
        except _DAMAGE as e:
            if isinstance(e, OSError) and e.errno is not None:
                raise
            said = str(e)
        member.finish()
        if damage := member.damage or said:
            where = f"{file.name}#byte-{member.begin}"
            address = "".join(_address(read) for read in last)
            said = f"{member.kind}: {damage}; {address}".rstrip("; ")
            yield Broken(where, "damaged or cut off", said)
            seen += 1
        else:
            yield from last
    if not seen:
        raise BrokenFile("no records", "not a WARC archive, or an empty one")


def _address(read: Read) -> str:
    return read.excerpt if isinstance(read, Broken) else str(read.meta["url"])


def _page(record: Any, file: File, settings: ReaderConfig) -> Iterator[Read]:
    headers = record.headers
    address = headers.get("WARC-Target-URI", "")
    where = f"{file.name}#{headers.get('WARC-Record-ID', '')}"
    try:
        kind, charset, data = _content(record, settings)
        if kind == "text/plain":
            text, title = data.decode(known_encoding(charset) or "utf-8"), ""
        elif kind in _PAGES:
            text, title = page_text(data, charset)
        else:
            return
    except BrokenFile as e:
        yield Broken(where, e.reason, e.excerpt or address)
        return
    except UnicodeDecodeError as e:
        yield Broken(where, "bad encoding", f"{address}: {e}")
        return
    except (RecursionError, MemoryError) as e:
        yield Broken(where, "too deeply nested", f"{address}: {type(e).__name__}")
        return
    yield Document(
        text=text,
        source="web",
        licence=settings.licence,
        meta={
            "path": file.name, "name": title or address, "kind": "page", "url": address,
            "date": headers.get("WARC-Date", ""),
        },
    )  # fmt: skip


def _content(record: Any, settings: ReaderConfig) -> tuple[str, str, bytes]:
    """A record's media type ("" where it is of no use), charset, and content, unpacked.

    Raises:
        BrokenFile: it is cut off, too large, or not packed as its header says.
    """
    headers, most = record.headers, settings.max_file_bytes
    data = record.reader.read(most + 1)
    if len(data) > most:
        raise BrokenFile("page too large")
    # fastwarc yields what is left of a record at the end of a cut archive like any other
    if len(data) < record.content_length or headers.get("Content-Length") is None:
        raise BrokenFile("damaged or cut off", headers.get("WARC-Target-URI", ""))
    if record.is_http:
        return _payload(data, settings)
    return *_media_type(headers.get("Content-Type") or ""), data


def _payload(message: bytes, settings: ReaderConfig) -> tuple[str, str, bytes]:
    """`_content` of what a server sent; of answers other than 200 nothing is of use."""
    from fastwarc.warc import WarcRecord

    record = WarcRecord()
    record.is_http = True
    record.set_bytes_content(message)
    try:
        record.parse_http(auto_decode="all", quirks_mode=True)
        if record.http_headers.status_code != 200:
            return "", "", b""
        data = record.reader.read(settings.max_file_bytes + 1)
    except (OSError, ValueError) as e:
        raise BrokenFile("no HTTP, or not packed as its header says", str(e)) from e
    if len(data) > settings.max_file_bytes:
        raise BrokenFile("page too large", f"more than {settings.max_file_bytes} bytes unpacked")
    return *_media_type(record.http_headers.get("Content-Type") or ""), data


def _media_type(header: str) -> tuple[str, str]:
    """Media type and charset of a Content-Type header; where there is none, a page is meant."""
    kind, *parameters = header.split(";")
    named = dict(p.strip().lower().partition("=")[::2] for p in parameters)
    return kind.strip().lower() or _PAGES[0], named.get("charset", "").strip("\"' ")
