"""PDF, by pypdfium2 in a process of its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from phikit.data.reading import outside
from phikit.data.reading.base import BrokenFile, File, Read, ReaderConfig
from phikit.errors import PhikitError, how_to_install
from phikit.records import Document


def read_pdf(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A PDF's text as one document; one that holds only pictures is set aside ("no text").

    Raises:
        PhikitError: pypdfium2 is missing.
    """
    if importlib.util.find_spec("pypdfium2") is None:
        raise PhikitError("reading PDF needs pypdfium2", how_to_install("data"))
    if file.path.stat().st_size > settings.max_file_bytes:
        raise BrokenFile("file too large", f"{file.path.stat().st_size} bytes")
    child = Path(__file__).with_name("pdf_child.py")
    text = outside.run([sys.executable, str(child), str(file.path)], settings, "the PDF reader")
    yield Document(
        text=text,
        source="acquired",
        licence=settings.licence,
        meta={"path": file.name, "name": file.stem, "kind": "pdf"},
    )
