"""Texts to be read, and what the readers make of a folder."""

from pathlib import Path

from phikit.data.readers import Broken, ReaderConfig, read
from phikit.records import Document

PAGES = Path(__file__).parent / "pages"
PROSE = "The quick brown fox jumps over the lazy dog, and then it rests. " * 5


def documents(folder: Path, **settings) -> tuple[list[Document], dict[str, str]]:
    found = list(read(ReaderConfig(root=str(folder), **settings)))
    kept = [d for d in found if isinstance(d, Document)]
    return kept, {b.name: b.reason for b in found if isinstance(b, Broken)}
