"""Web pages and EPUB chapters as text in which structure survives, by resiliparse.

The page's tree is prepared first, by lxml: equations become TeX between dollars, code blocks are
fenced, tables become Markdown tables, headings get their marks. Then resiliparse picks the main
content and writes it out. On ten real pages it kept as many paragraphs, lines of code and table
cells as trafilatura, several times faster (docs/lab-notebook.md).
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator
from typing import Any

from phikit.data.reading.base import BrokenFile, File, Read, ReaderConfig
from phikit.data.reading.equations import join_replaced, keep_equations, replace
from phikit.errors import PhikitError, how_to_install
from phikit.records import Document

_LANGUAGE = re.compile(r"(?:language|lang|highlight|brush|sourceCode)[-:\s]+([A-Za-z0-9+#]+)")
_PLAIN_LANGUAGE = re.compile(r"(?:rust|python|bash|cpp|c)\b")
_NO_LANGUAGE = {"default", "none", "text", "notranslate", "code", "source"}
_BLANK_LINES = re.compile(r"\n[ \t]*(?:\n[ \t]*){2,}")
_FENCE = re.compile(r"^[ \t]*\ue000(.*)\ue001[ \t]*$", re.MULTILINE)
# parts of every page of a site; what the main content's rules miss
_FURNITURE = {
    "sidebar", "sphinxsidebar", "navheader", "navfooter", "nav-wrapper", "nav-wide-wrapper",
    "headerlink", "anchor", "skip-link",
}  # fmt: skip
_LINE_NUMBERS = {"linenos", "lineno", "linenodiv", "rouge-gutter", "hljs-ln-numbers"}
# resiliparse takes a list that lies less deep in the page than this for its navigation
_LIST_DEPTH = 5
_WIDEST = 100  # columns that a cell may span
# what no page may hold; two of them mark fences below
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ue000\ue001\ufffe\uffff]")

_REFERENCE = re.compile(r"&#(?:[xX]([0-9a-fA-F]+)|([0-9]+));?")  # to a character by its number


def read_html(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A page as one document of class "web"."""
    text, title = page_text(file.bytes(settings))
    yield Document(
        text=text,
        source="web",
        licence=settings.licence,
        meta={"path": file.name, "name": title or file.stem, "kind": "page"},
    )


def page_text(data: bytes, encoding: str = "", main: bool = True) -> tuple[str, str]:
    """A page's text and its title.

    Args:
        encoding: what the server said; otherwise the page's own word is taken, or it is detected.
        main: leave out navigation, headers, footers and the like.

    Raises:
        BrokenFile: it has no text.
        PhikitError: resiliparse is missing.
    """
    try:
        import lxml.html
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    except ImportError as e:
        raise PhikitError("reading HTML needs lxml and resiliparse", how_to_install("data")) from e
    encoding = known_encoding(encoding) or detect_encoding(data, from_html_meta=True) or "utf-8"
    if _is_utf8(data):
        encoding = "utf-8"
    page = bytes_to_str(data, encoding)
    page = _REFERENCE.sub(_allowed, _CONTROL.sub("", page))
    try:
        parser = lxml.html.HTMLParser(encoding="utf-8", remove_comments=True, huge_tree=True)
        tree = lxml.html.document_fromstring(page.encode("utf-8", "replace"), parser=parser)
    except lxml.etree.LxmlError as e:
        raise BrokenFile("no text", str(e)) from e
    if (body := tree.find("body")) is None:
        raise BrokenFile("no text", "no body")
    title = " ".join((tree.findtext(".//title") or "").split())
    _prepare(body, main)
    text = extract_plain_text(
        lxml.html.tostring(tree, encoding="unicode"),
        preserve_formatting=True,
        main_content=main,
        list_bullets=True,
        alt_texts=False,
        comments=True,
    )
    if not (text := tidy(text)):
        raise BrokenFile("no text", "HTML")
    return text, title


def _allowed(reference: re.Match[str]) -> str:
    """A reference to a character as it is; nothing, if it means one that no page may hold."""
    code = int(reference[1], 16) if reference[1] else int(reference[2][:9])
    known = code < 0x110000 and not 0xD800 <= code < 0xE000
    return reference[0] if known and not _CONTROL.match(chr(code)) else ""


def known_encoding(name: str) -> str:
    """The name, if Python knows such an encoding of text; servers send others, too."""
    try:
        return name if name and codecs.lookup(name)._is_text_encoding else ""
    except LookupError:
        return ""


def _is_utf8(data: bytes) -> bool:
    """Whether there are letters beyond ASCII, and all are UTF-8: no other encoding looks so.

    Many pages say they are Latin-1 and are not.
    """
    if data.isascii() or b"\0" in data:
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def tidy(text: str) -> str:
    """Fences at the left edge, no trailing spaces, one blank line at most between paragraphs."""
    text = _FENCE.sub(lambda m: m[1], text)
    lines = "\n".join(line.rstrip() for line in text.splitlines())
    return _BLANK_LINES.sub("\n\n", lines).strip()


def _prepare(body: Any, main: bool) -> None:
    if main:
        _leave_out(body, _is_furniture)
        _keep_lists(body)
        for figure in body.xpath(".//figure[.//table or .//pre or .//math or .//blockquote]"):
            figure.tag = "div"  # figures are left out as pictures are, with their captions
            for caption in figure.iter("figcaption"):
                caption.tag = "p"
    keep_equations(body)  # first: a drawing has as many elements as a page
    _leave_out(body, _is_line_number)
    for table in list(body.iter("table")):
        _table(table)
    for block in list(body.iter("pre")):
        _code(block)
    for heading in list(body.iter("h1", "h2", "h3", "h4", "h5", "h6")):
        heading.text = "#" * int(heading.tag[1]) + " " + (heading.text or "").lstrip()
    for code in list(body.iter("code")):
        if code.text_content().strip() and next(code.iterancestors("pre", "code"), None) is None:
            code.text = "`" + (code.text or "")
            last = code[-1] if len(code) else None
            if last is None:
                code.text += "`"
            else:
                last.tail = (last.tail or "") + "`"


def _leave_out(body: Any, unwanted: Callable[[Any], bool]) -> None:
    for part in [node for node in body.iterdescendants("*") if unwanted(node)]:
        replace(part, "")
    join_replaced(body)


def _is_furniture(node: Any) -> bool:
    # for a page of many elements, XPath's contains() for each name takes five times as long
    return (
        node.tag == "nav"
        or node.get("role") in ("navigation", "search")
        or not _FURNITURE.isdisjoint(node.get("class", "").split())
    )


def _is_line_number(node: Any) -> bool:
    classes = node.get("class", "")
    return not _LINE_NUMBERS.isdisjoint(classes.split()) or (
        node.tag == "td" and classes == "gutter"
    )


def _keep_lists(body: Any) -> None:
    """Lays lists deeper, except those of links alone, so that they count as content."""
    for found in list(body.iter("ul")):
        deep = sum(1 for _ in found.iterancestors())
        text = found.text_content().strip()
        links = sum(len(link.text_content().strip()) for link in found.iter("a"))
        if deep >= _LIST_DEPTH or 2 * links > len(text):
            continue
        outer, tail, found.tail = found, found.tail, None
        place = found.getprevious()
        parent = found.getparent()
        for _ in range(_LIST_DEPTH - deep):
            layer = outer.makeelement("div")
            layer.append(outer)
            outer = layer
        outer.tail = tail
        parent.insert(0 if place is None else parent.index(place) + 1, outer)


def _lines(node: Any) -> str:
    """An element's text; where a line or a block in it ends, a new line begins."""
    for part in list(node.iter("br", "p", "div", "li")):
        tail = part.tail or ""
        ended = tail.startswith("\n") or part.text_content().endswith("\n")
        if part is not node and (part.tag == "br" or not ended):
            part.tail = "\n" + tail
    return str(node.text_content())


def _code(block: Any) -> None:
    """Makes a <pre> one text with fences; their marks are taken away when the text is whole."""
    text = _lines(block).strip("\n")
    if block.get("data-table") or not text.strip():
        return
    language = _language(block)
    # a line of backticks inside needs a longer fence
    inside = re.findall(r"^\s*(`{3,})", text, re.MULTILINE)
    fence = "`" * max([3, *(len(mark) + 1 for mark in inside)])
    _fill(block, f"\ue000{fence}{language}\ue001\n{text}\n\ue000{fence}\ue001")


def _fill(block: Any, text: str) -> None:
    for child in list(block):
        block.remove(child)
    block.text = text


def _language(block: Any) -> str:
    """The language that a code block, what is in it, or what is around it, says it has."""
    outer = block.getparent()
    near = [block, block.find(".//code"), outer, outer.getparent() if outer is not None else None]
    for node in near:
        classes = (node.get("class") or "") if node is not None else ""
        if (found := _LANGUAGE.search(classes)) and found[1].lower() not in _NO_LANGUAGE:
            return found[1].lower()
        if node is block and (name := _PLAIN_LANGUAGE.match(classes)):
            return name[0]
    return ""


def _table(table: Any) -> None:
    """Makes a table of data a Markdown table; layout (one column, nested, long cells) stays."""
    if table.xpath(".//table | .//pre | .//ul | .//ol | .//blockquote"):
        return
    rows = [row for row in _grid(table) if any(row)]
    width = max(map(len, rows), default=0)
    if width < 2 or len(rows) < 2 or max(len(cell) for row in rows for cell in row) > 1000:
        return
    lines = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * width)
    caption = table.find("caption")
    title = [" ".join(caption.text_content().split()), ""] if caption is not None else []
    _fill(table, "\n".join([*title, *lines]))
    # shown as it stands, as a <pre> is, but without the fences of code
    table.tag = "pre"
    table.set("data-table", "yes")


def _grid(table: Any) -> list[list[str]]:
    """The cells' texts, each in its column.

    A cell over several rows stands in each of them; one over several columns in the first.
    """
    grid: list[list[str]] = []
    hanging: dict[int, tuple[int, str]] = {}  # column: rows still to come, text
    for tr in table.iter("tr"):
        row: list[str] = []
        cells = iter([c for c in tr if c.tag in ("td", "th")])
        cell = next(cells, None)
        while cell is not None or any(column >= len(row) for column in hanging):
            left, text = hanging.pop(len(row), (0, ""))
            if left:
                if left > 1:
                    hanging[len(row)] = left - 1, text
                row.append(text)
            elif cell is None:
                row.append("")
            else:
                down, text = _span(cell, "rowspan"), _cell(cell)
                for part in [text, *[""] * (min(_span(cell, "colspan"), _WIDEST) - 1)]:
                    if down > 1:
                        hanging[len(row)] = down - 1, part
                    row.append(part)
                cell = next(cells, None)
        grid.append(row)
    return grid


def _span(cell: Any, name: str) -> int:
    value = (cell.get(name) or "").strip()
    return max(1, int(value)) if value.isascii() and value.isdigit() and len(value) < 6 else 1


def _cell(node: Any) -> str:
    return " ".join(_lines(node).split()).replace("|", "\\|")
