"""Prints the text of a PDF: `python pdf_child.py FILE`, started by `pdf.py` for each file.

It imports nothing but the PDF library, to start quickly.
"""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Iterator

_LINE_END_HYPHEN = re.compile("(?:\ufffe|\u00ad|\x02)\\s*")
_CLOSING = (".", "!", "?", ":", ";", '"', "”", ")")


def pages(path: str) -> Iterator[str]:
    """The text of every page, its lines joined to paragraphs."""
    from pypdfium2 import PdfDocument

    document = PdfDocument(path)
    for page in document:
        text_page = page.get_textpage()
        yield paragraphs(text_page.get_text_bounded())
        text_page.close()
        page.close()


def paragraphs(page: str) -> str:
    """Joins the lines of running text and mends words cut at a line's end.

    A line goes on in the next one when it is about as long as the page's lines are and does not
    end a sentence, so headings, lists, code and tables keep their lines.
    """
    page = _LINE_END_HYPHEN.sub("", page.replace("\r\n", "\n"))
    lines = [line.rstrip() for line in page.split("\n")]
    usual = statistics.median([len(line) for line in lines if line] or [0])
    text = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        goes_on = (
            len(line) >= 0.8 * usual
            and following[:1].isalnum()
            and not line.endswith(_CLOSING)
            and (following[:1].islower() or line[-1:].islower() or line.endswith(","))
        )
        text += line + (" " if goes_on else "\n")
    return text.strip("\n")


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        print("\n\n".join(pages(sys.argv[1])))
    except RuntimeError as e:  # all errors of the library are
        sys.exit(str(e))
