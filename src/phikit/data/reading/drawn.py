"""Equations of which a page holds the drawing alone, made MathML again.

KaTeX lays an equation out in spans ("katex-html"), MathJax in elements of its own (CHTML) or in an
SVG; each keeps its fractions, roots, powers, indices and tables apart, by class, by name or by
height. What has none of these structures is kept as its letters in a row.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from phikit.data.reading import pictures

_LEAVES = {"mi", "mn", "mo", "mtext", "ms"}
_SCRIPTS = {"msup", "msub", "msubsup", "munder", "mover", "munderover", "mmultiscripts"}
_SKIPPED = {"surd", "spacer", "nstrut", "dstrut", "strut", "line", "mspace", "assistive-mml"}
# tall brackets are put together out of pieces: the first one tells which
_PIECES = dict.fromkeys("⎛⎜⎝", "(") | dict.fromkeys("⎞⎟⎠", ")") | dict.fromkeys("⎡⎢⎣", "[") | (
    dict.fromkeys("⎤⎥⎦", "]") | dict.fromkeys("⎧⎨⎩", "{") | dict.fromkeys("⎫⎬⎭", "}")
) | {"\ue150": "⏞", "\ue152": "⏟"}  # fmt: skip
_WITHOUT_TOP = {"[": "⌊", "]": "⌋"}
_WITHOUT_FOOT = {"[": "⌈", "]": "⌉"}
# elements between one that MathJax names by its kind and that one's own parts
_WRAPPERS = {"mjx-box", "mjx-row", "mjx-munder", "mjx-frac", "mjx-dbox", "mjx-dtable"}
_UNSEEN = {"strut", "pstrut", "vlist-s", "mspace", "frac-line", "nulldelimiter"}
_STROKE = "\ue020"  # how KaTeX strikes the sign that follows, as in ≠
_CODE = re.compile(r"\bmjx-c([0-9A-F]+)\b")
_TOP = re.compile(r"(?:^|;)\s*top:\s*(-?[\d.]+)em")
_MOVED = re.compile(r"translate\(\s*[-\d.]+[\s,]+(-?[\d.]+)")
_FIRST_STYLED, _LAST_STYLED = "\U0001d400", "\U0001d7ff"  # mathematical letters: italic, bold, ...


def mathml(drawing: Any) -> Any:
    """A <math> element of a `katex` span or an `mjx-container`; None if nothing can be read."""
    math = drawing.makeelement("math")
    if drawing.tag == "mjx-container":
        found = drawing.find(".//mjx-math")
        parts = _mathjax(found) if found is not None else _of_svg(drawing)
    else:
        parts = [part for base in _within(drawing, "base") for part in _katex_row(base)]
    math.extend(parts)
    return math if math.text_content().strip() else None


def _made(near: Any, tag: str, parts: Iterable[Any] = (), text: str | None = None) -> Any:
    made = near.makeelement(tag)
    made.extend(parts)
    made.text = text
    return made


def _row(near: Any, parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else _made(near, "mrow", parts)


def _fraction(near: Any, halves: list[Any], line: bool) -> Any:
    """Two rows with a line between them, or without one, as a binomial coefficient has them."""
    if line or len(halves) != 2:
        return _made(near, "mfrac", halves)
    return _made(near, "mtable", [_made(near, "mtr", [_made(near, "mtd", [h])]) for h in halves])


def _letters(near: Any, tag: str, text: str) -> list[Any]:
    plain = "".join(
        unicodedata.normalize("NFKC", c) if _FIRST_STYLED <= c <= _LAST_STYLED or c == "ℎ" else c
        for c in text
    )
    if plain and plain[0] in _PIECES:
        plain = _whole(plain)
    if tag == "mo" and len(plain) > 1 and plain.isalpha():
        tag = "mi"  # the name of a function
    return [_made(near, tag, text=plain)] if plain else []


def _whole(pieces: str) -> str:
    """The bracket that is put together out of these."""
    bracket = _PIECES[pieces[0]]
    if not set("⎡⎤") & set(pieces):
        return _WITHOUT_TOP.get(bracket, bracket)
    return bracket if set("⎣⎦") & set(pieces) else _WITHOUT_FOOT.get(bracket, bracket)


# MathJax: elements named mjx-..., or <g data-mml-node="..."> in an SVG


def _name(node: Any) -> str:
    if not isinstance(node.tag, str):
        return ""
    return str(node.get("data-mml-node") or node.tag.removeprefix("mjx-")).lower()


def _of_svg(drawing: Any) -> list[Any]:
    found = drawing.xpath(".//*[@data-mml-node='math']")
    return _mathjax(found[0]) if found else []


def _sign(node: Any) -> str:
    """The letters that a leaf shows, by their code points."""
    shown = []
    for part in node.iter():
        code = part.get("data-c") or ""
        if not code and (found := _CODE.search(part.get("class") or "")):
            code = found[1]
        if re.fullmatch(r"[0-9A-Fa-f]{1,6}", code):
            letter = chr(point) if (point := int(code, 16)) < 0x110000 else ""
            # of the pieces that only MathJax's font knows, those tell which brace it is
            if letter.isprintable() or letter in _PIECES:
                shown.append(letter)
        elif part.tag in ("mjx-utext", "text"):
            shown.append(part.text or "")
    return "".join(shown)


def _mathjax(node: Any) -> list[Any]:
    """What is in an element, as MathML."""
    name = _name(node)
    if not name or name in _SKIPPED:
        return []
    if name in _LEAVES:
        return _letters(node, name, _sign(node))
    if name in _SCRIPTS:
        return [_scripted(node, name)]
    if name == "mfrac":
        line = node.find("rect") is not None or _nearest(node, "mjx-line") is not None
        return [_fraction(node, _halves(node), line)]
    if name in ("msqrt", "mroot"):
        return [_root(node, name)]
    if name in ("mtable", "mtr", "mtd"):
        parts = [part for child in node for part in _mathjax(child)]
        return [_made(node, name, parts)]
    return [part for child in node for part in _mathjax(child)]


def _halves(node: Any) -> list[Any]:
    """Numerator and denominator."""
    halves = [_nearest(node, "mjx-num"), _nearest(node, "mjx-den")]
    if None in halves:
        halves = [child for child in node if _name(child) not in ("rect", "line")][:2]
    return [_row(node, _mathjax(half)) for half in halves]


def _nearest(node: Any, tag: str) -> Any:
    """An element's own part of that name, not one that belongs to a part of it."""
    for child in node:
        if child.tag == tag:
            return child
        if child.tag in _WRAPPERS and (found := _nearest(child, tag)) is not None:
            return found
    return None


def _root(node: Any, name: str) -> Any:
    index = node.find("mjx-root")
    under = node.find("mjx-sqrt/mjx-box")
    if under is not None:
        below = [part for child in under for part in _mathjax(child)]
        above = _mathjax(index) if index is not None else []
    else:  # of the SVG: what is under it, the index, the sign
        parts = [c for c in node if c.tag == "g" and (_name(c) != "mo" or _sign(c) != "√")]
        below = _mathjax(parts[0]) if parts else []
        above = _mathjax(parts[1]) if name == "mroot" and len(parts) > 1 else []
    if not above:
        return _made(node, "msqrt", below)
    return _made(node, "mroot", [_row(node, below), _row(node, above)])


def _scripted(node: Any, name: str) -> Any:
    base, low, high = _places(node, name)
    parts = [_row(node, _mathjax(base))] if base is not None else [_made(node, "mrow")]
    limits = name in ("munder", "mover", "munderover")
    kinds = ("munder", "mover", "munderover") if limits else ("msub", "msup", "msubsup")
    below, above = (_mathjax(place) if place is not None else [] for place in (low, high))
    parts += [_row(node, place) for place in (below, above) if place]
    if len(parts) == 1:  # a brace that is drawn without letters
        return parts[0]
    return _made(node, kinds[2 if len(parts) == 3 else int(not below)], parts)


def _places(node: Any, name: str) -> tuple[Any, Any, Any]:
    """What stands in the line, below and above; None where nothing does."""
    if (base := _nearest(node, "mjx-base")) is not None:
        return base, _nearest(node, "mjx-under"), _nearest(node, "mjx-over")
    script = node.find("mjx-script")
    parts = [c for c in node if c is not script and _name(c)]
    if script is not None:
        scripts = [c for c in script if _name(c) not in _SKIPPED]
        if len(scripts) > 1:  # the upper one comes first
            return parts[0] if parts else None, scripts[1], scripts[0]
        parts += scripts
    if len(parts) < 2:
        return (parts or [None])[0], None, None
    if len(parts) == 3:
        below, above = sorted(parts[1:], key=_height)
        return parts[0], below, above
    lower = name in ("msub", "munder")
    return (parts[0], parts[1], None) if lower else (parts[0], None, parts[1])


def _height(node: Any) -> float:
    moved = _MOVED.search(node.get("transform") or "")
    return float(moved[1]) if moved else 0.0


# KaTeX: spans with classes, their parts stacked in a "vlist" with a height each


def _classes(node: Any) -> set[str]:
    """An element's classes; some of them have had "katex-" before them since KaTeX 0.18."""
    return set(node.get("class", "").replace("katex-", "").split())


def _within(node: Any, name: str) -> Iterator[Any]:
    """The elements of a class in another, in their order."""
    return (part for part in node.iterdescendants("*") if name in _classes(part))


def _own(node: Any, name: str) -> Any:
    """The first element of a class directly below another; None if there is none."""
    return next((part for part in node if name in _classes(part)), None)


def _stack(node: Any) -> list[Any]:
    """The parts of an element that stand above each other, from the top; no inner stack's."""
    lists = node if "vlist" in _classes(node) else next(_within(node, "vlist"), ())
    parts = [(float(top[1]), n) for n in lists if (top := _TOP.search(n.get("style") or ""))]
    return [part for _, part in sorted(parts, key=lambda pair: pair[0])]


def _katex_row(node: Any) -> list[Any]:
    parts: list[Any] = []
    for child in node:
        if "msupsub" in _classes(child):
            base = parts.pop() if parts else _made(node, "mrow")
            parts.append(_katex_scripts(child, base))
        else:
            parts += _katex(child)
    for at in range(len(parts) - 1, 0, -1):
        if parts[at - 1].text == _STROKE:
            struck = unicodedata.normalize("NFC", parts[at].text_content()[:1] + "\u0338")
            parts[at - 1 : at + 1] = [_made(node, "mo", text=struck)]
    return parts


def _katex(node: Any) -> list[Any]:
    classes = _classes(node)
    if classes & _UNSEEN or node.tag == "svg":
        return []
    if "mfrac" in classes:
        stack = _stack(node)
        halves = [p for p in stack if _own(p, "frac-line") is None]
        if len(halves) == 2:
            inside = [_row(node, _katex_row(p)) for p in halves]
            return [_fraction(node, inside, len(halves) < len(stack))]
    if "sqrt" in classes:
        return [_katex_root(node)]
    if "op-limits" in classes:
        return [_katex_limits(node)]
    if "accent" in classes and len(stack := _stack(node)) == 2:
        return _katex_accent(node, stack)
    if classes & {"overline", "underline"} and (stack := _stack(node)):
        rest = [part for p in stack for part in _katex_row(p)]
        tag = "mover" if "overline" in classes else "munder"
        return [_made(node, tag, [_row(node, rest), _made(node, "mo", text="‾")])]
    if classes & {"mover", "munder"}:
        found = [_katex_row(p) or _letters(node, "mo", pictures.sign(p)) for p in _stack(node)]
        rows = [_row(node, row) for row in found if row]
        if len(rows) == 2:
            up = "mover" in classes
            return [_made(node, "mover" if up else "munder", rows[::-1] if up else rows)]
        return rows
    if "mtable" in classes:
        return [_katex_table(node)]
    if "mop" in classes and (name := node.text_content()).isalpha() and name.isascii():
        return _letters(node, "mi", name)
    if {"delimsizing", "mult"} <= classes:
        glyphs = node.text_content().replace("\u200b", "").strip()
        return _letters(node, "mo", glyphs or pictures.sign(node))
    if "text" in classes:
        return [_made(node, "mtext", text=node.text_content().replace("\u200b", ""))]
    if len(node):
        lead = _letters(node, "mo", (node.text or "").replace("\u200b", "").strip())
        return lead + _katex_row(node)
    return _katex_leaf(node, classes)


def _katex_leaf(node: Any, classes: set[str]) -> list[Any]:
    text = (node.text or "").replace("\u200b", "").replace("\u00a0", " ").strip()
    if "mathbb" in classes and len(text) == 1 and text.isascii() and text.isupper():
        text = unicodedata.lookup(f"DOUBLE-STRUCK CAPITAL {text}")
    if "mathnormal" in classes:  # letters side by side, each a name of its own
        return [part for letter in text for part in _letters(node, "mi", letter)]
    kind = "mi" if text.isalpha() else "mn" if text.isdigit() else "mo"
    return _letters(node, kind, text)


def _katex_accent(node: Any, stack: list[Any]) -> list[Any]:
    """A sign above the letters; stretched ones have no name, and only a picture."""
    mark = next((p for p in stack if _own(p, "accent-body") is not None), None)
    rows = [(p, _katex_row(p) if p is not mark else []) for p in stack]
    if mark is None:
        mark = next((p for p, row in rows if not row), None)
    rest = [part for _, row in rows for part in row]
    said = mark.text_content().strip() or pictures.sign(mark) if mark is not None else ""
    return [_made(node, "mover", [_row(node, rest), *_letters(node, "mo", said)])] if said else rest


def _katex_scripts(node: Any, base: Any) -> Any:
    stack = _stack(node)
    rows = [_row(node, _katex_row(part)) for part in stack]
    if len(rows) == 2:
        return _made(node, "msubsup", [base, rows[1], rows[0]])
    if len(rows) != 1:
        return _made(node, "mrow", [base, *rows])
    # a stack that reaches below the line holds an index
    below = _own(node, "vlist-t2") is not None
    return _made(node, "msub" if below else "msup", [base, *rows])


def _katex_root(node: Any) -> Any:
    index, own = _own(node, "root"), _own(node, "vlist-t")
    stack = _stack(node if own is None else own)
    below = [p for part in stack if _own(part, "hide-tail") is None for p in _katex_row(part)]
    if index is None:
        return _made(node, "msqrt", below)
    above = [p for part in _stack(index) for p in _katex_row(part)]
    return _made(node, "mroot", [_row(node, below), _row(node, above)])


def _katex_limits(node: Any) -> Any:
    """A sign with limits above and below: the largest of the stack is the sign itself."""
    stack = _stack(node)
    rows = [_row(node, _katex_row(part)) for part in stack]
    at = next((n for n, part in enumerate(stack) if next(_within(part, "mtight"), None) is None), 0)
    if len(rows) == 3 and at == 1:
        return _made(node, "munderover", [rows[1], rows[2], rows[0]])
    if len(rows) == 2:
        return _made(node, "munder" if at == 0 else "mover", [rows[at], rows[1 - at]])
    return _made(node, "mrow", rows)


def _katex_table(node: Any) -> Any:
    columns = [
        [_made(node, "mtd", _katex_row(cell)) for cell in _stack(column)]
        for column in node
        if any(name.startswith("col-align") for name in _classes(column))
    ]
    height = max(map(len, columns), default=0)
    rows = []
    for at in range(height):
        cells = [c[at] if at < len(c) else _made(node, "mtd") for c in columns]
        rows.append(_made(node, "mtr", cells))
    return _made(node, "mtable", rows)
