"""EPUB books, chapter by chapter: a zip archive of web pages and a list of their order, by lxml."""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from phikit.data.reading.base import (
    DAMAGED_MEMBER,
    Broken,
    BrokenFile,
    File,
    Read,
    ReaderConfig,
    check_archive,
)
from phikit.data.reading.html import known_encoding, page_text
from phikit.errors import PhikitError, how_to_install
from phikit.records import Document

_PAGES = ("application/xhtml+xml", "text/html")
_XML_ENCODING = re.compile(rb"\s*<\?xml[^>]*\bencoding\s*=\s*[\"']([\w.-]+)")


def read_epub(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """The book's chapters in reading order, each a document that names the book.

    A chapter that is damaged or that the book does not hold is set aside alone. A book
    that states no order is read in the order of its list of contents.

    Raises:
        BrokenFile: it is no EPUB, is protected, unpacks to too much, or holds no text.
        PhikitError: lxml is missing.
    """
    check_archive(file, settings, whole=False)
    found = 0
    with zipfile.ZipFile(file.path) as archive:
        title, chapters = _contents(archive)
        protected = _protected(archive)
        for name in chapters:
            if name in protected:
                raise BrokenFile("encrypted", name)
            try:
                data = archive.read(name)
            except KeyError:
                yield Broken(f"{file.name}#{name}", "chapter is missing")
                continue
            except DAMAGED_MEMBER as e:
                yield Broken(f"{file.name}#{name}", "damaged or cut off", str(e))
                continue
            try:
                text, heading = page_text(data, _encoding(data), main=False)
            except BrokenFile:
                continue  # a cover, a page with a picture
            found += 1
            yield Document(
                text=text,
                source="acquired",
                licence=settings.licence,
                meta={
                    "path": file.name, "name": heading or name, "kind": "chapter",
                    "book": title or file.stem, "chapter": found,
                },
            )  # fmt: skip
    if not found:
        raise BrokenFile("no text", "EPUB")


def _contents(archive: zipfile.ZipFile) -> tuple[str, list[str]]:
    """The book's title, and the names of its pages in reading order."""
    place = _xml(archive, "META-INF/container.xml").xpath("//*[local-name()='rootfile']/@full-path")
    if not place:
        raise BrokenFile("not a whole EPUB", "META-INF/container.xml names no package")
    package = _xml(archive, place[0])
    title = package.xpath("string(//*[local-name()='metadata']/*[local-name()='title'])")
    folder = posixpath.dirname(place[0])
    pages = {
        item.get("id"): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in package.xpath("//*[local-name()='manifest']/*[local-name()='item']")
        if item.get("media-type") in _PAGES and "nav" not in item.get("properties", "").split()
    }
    order = package.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref")
    return " ".join(title.split()), [pages[i] for i in order or pages if i in pages]


def _protected(archive: zipfile.ZipFile) -> set[str]:
    """What of the book is encrypted (fonts often are)."""
    if "META-INF/encryption.xml" not in archive.namelist():
        return set()
    named = _xml(archive, "META-INF/encryption.xml").xpath("//*[local-name()='CipherReference']")
    return {unquote(reference.get("URI", "")) for reference in named}


def _xml(archive: zipfile.ZipFile, name: str) -> Any:
    try:
        from lxml import etree
    except ImportError as e:
        raise PhikitError("reading EPUB needs lxml", how_to_install("data")) from e
    try:
        return etree.fromstring(
            archive.read(name), etree.XMLParser(resolve_entities=False, no_network=True)
        )
    except KeyError as e:
        raise BrokenFile("not a whole EPUB", f"{name} is missing") from e
    except etree.XMLSyntaxError as e:
        raise BrokenFile("not a whole EPUB", f"{name}: {e}") from e


def _encoding(data: bytes) -> str:
    """What a page's own first line says; UTF-8, as the standard has it, where it says nothing."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    found = _XML_ENCODING.match(data)
    return known_encoding(found[1].decode() if found else "") or "utf-8"
