"""EPUB books, chapter by chapter, by ebooklib."""

from __future__ import annotations

from collections.abc import Iterator

from phikit.data.reading.base import BrokenFile, File, Read, ReaderConfig, check_archive
from phikit.data.reading.html import page_text
from phikit.errors import PhikitError
from phikit.records import Document


def read_epub(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """The book's chapters in reading order, each a document that names the book.

    Raises:
        BrokenFile: it is no EPUB, is protected, unpacks to too much, or holds no text.
        PhikitError: ebooklib is missing.
    """
    try:
        import ebooklib
        from ebooklib import epub
    except ImportError as e:
        raise PhikitError("reading EPUB needs ebooklib", "pip install 'phikit[data]'") from e
    check_archive(file, settings)
    try:
        book = epub.read_epub(str(file.path), {"ignore_ncx": True, "ignore_missing_css": True})
    except (epub.EpubException, KeyError, AttributeError, ValueError, SyntaxError) as e:
        raise BrokenFile("not a whole EPUB", f"{type(e).__name__}: {e}") from e
    titles = book.get_metadata("DC", "title")
    title = titles[0][0] if titles else file.stem
    found = 0
    for name, _ in book.spine:
        item = book.get_item_with_id(name)
        if item is None or item.get_type() != ebooklib.ITEM_DOCUMENT or not item.is_chapter():
            continue
        try:
            text, heading = page_text(item.get_content(), "utf-8", main=False)
        except BrokenFile:
            continue  # a cover, a page with a picture
        found += 1
        yield Document(
            text=text,
            source="acquired",
            licence=settings.licence,
            meta={
                "path": file.name, "name": heading or item.get_name(), "kind": "chapter",
                "book": title, "chapter": found,
            },
        )  # fmt: skip
    if not found:
        raise BrokenFile("no text", "EPUB")
