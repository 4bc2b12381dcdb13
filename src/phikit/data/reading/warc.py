"""WARC archives of crawled pages, record by record, by fastwarc."""

from __future__ import annotations

from collections.abc import Iterator

from phikit.data.reading.base import Broken, BrokenFile, File, Read, ReaderConfig
from phikit.data.reading.html import page_text
from phikit.errors import PhikitError
from phikit.records import Document

_PAGES = ("text/html", "application/xhtml+xml")


def read_warc(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """Every page that a server sent with status 200; one that cannot be read is set aside alone.

    Records without an HTTP header (the older kind of archive) count as pages. What is neither HTML
    nor plain text (pictures, scripts) is passed over.

    Raises:
        BrokenFile: the archive is damaged; the pages before that have been yielded.
        PhikitError: fastwarc is missing.
    """
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError as e:
        raise PhikitError("reading WARC needs fastwarc", "pip install 'phikit[data]'") from e
    kinds = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.conversion
    seen = 0
    try:
        with file.path.open("rb") as stream:
            for record in ArchiveIterator(stream, record_types=kinds, parse_http=True):
                seen += 1
                yield from _page(record, file, settings)
    except (OSError, ValueError, EOFError, RuntimeError) as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise
        raise BrokenFile("damaged or cut off", f"after {seen} records: {e}") from e
    if not seen:
        raise BrokenFile("no records", "not a WARC archive, or an empty one")


def _page(record: object, file: File, settings: ReaderConfig) -> Iterator[Read]:
    headers = record.headers  # type: ignore[attr-defined]
    address = headers.get("WARC-Target-URI", "")
    http = record.http_headers  # type: ignore[attr-defined]
    if http is not None and http.status_code != 200:
        return
    kind = http.get("Content-Type", "") if http is not None else headers.get("Content-Type", "")
    kind = kind.split(";")[0].strip().lower()
    if kind and kind not in _PAGES and kind != "text/plain":
        return
    where = f"{file.name}#{headers.get('WARC-Record-ID', '')}"
    try:
        data = record.reader.read(settings.max_file_bytes + 1)  # type: ignore[attr-defined]
        if len(data) > settings.max_file_bytes:
            raise BrokenFile("page too large", address)
        charset = record.http_charset if http is not None else None  # type: ignore[attr-defined]
        if kind == "text/plain":
            text, title = data.decode(charset or "utf-8"), ""
        else:
            text, title = page_text(data, charset or "")
    except BrokenFile as e:
        yield Broken(where, e.reason, e.excerpt or address)
        return
    except (UnicodeDecodeError, LookupError) as e:
        yield Broken(where, "bad encoding", f"{address}: {e}")
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
