"""Equations of web pages as TeX between dollars: MathML, KaTeX, MathJax, and pictures of formulas.

Pages carry the TeX an equation was written in more often than not, as an annotation, an alternative
text or a script; only MathML without any is translated, element by element. Powers and indices in
running text (`2<sup>n</sup>`) are kept, too: without them 2^n reads 2n.
"""

from __future__ import annotations

import re
from typing import Any

from phikit.data.reading.drawn import mathml

_TEX = "application/x-tex"
_SCRIPT = "math/tex"
_FORMULA_CLASSES = re.compile(r"\b(math|mwe-math-fallback-image-\w+|tex|latex)\b")
_SPACE = re.compile(r"\s+")
_REPLACED = "phikit-replaced"
_DRAWN = (
    ".//*[self::mjx-container or contains(concat(' ', @class, ' '), ' katex ')"
    " or contains(concat(' ', @class), ' MathJax')]"  # _Display, _CHTML, _SVG, _Preview, ...
)
_SYMBOLS = {
    "∑": r"\sum", "∏": r"\prod", "∫": r"\int", "∞": r"\infty", "√": r"\sqrt", "±": r"\pm",
    "×": r"\times", "·": r"\cdot", "⋅": r"\cdot", "≤": r"\le", "≥": r"\ge", "≠": r"\ne",
    "≈": r"\approx", "→": r"\to", "⇒": r"\Rightarrow", "∈": r"\in", "∂": r"\partial",
    "∇": r"\nabla", "∀": r"\forall", "∃": r"\exists", "∪": r"\cup", "∩": r"\cap", "⊂": r"\subset",
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\epsilon",
    "θ": r"\theta", "λ": r"\lambda", "μ": r"\mu", "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma",
    "τ": r"\tau", "φ": r"\phi", "χ": r"\chi", "ψ": r"\psi", "ω": r"\omega", "Γ": r"\Gamma",
    "Δ": r"\Delta", "Σ": r"\Sigma", "Φ": r"\Phi", "Ψ": r"\Psi", "Ω": r"\Omega",
    "{": r"\{", "}": r"\}", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$",
    "−": "-", "′": "'", "…": r"\dots", "∣": "|", "⁢": "", "⁡": "", "\u2063": "", "\u2064": "",
}  # fmt: skip
_ABOVE = {
    "^": "hat", "ˆ": "hat", "¯": "bar", "→": "vec", "~": "tilde", "˙": "dot", "⏞": "overbrace",
    "–": "overline", "―": "overline", "‾": "overline",
}  # fmt: skip
_BELOW = {"⏟": "underbrace", "–": "underline", "―": "underline", "‾": "underline"}


def keep_equations(body: Any) -> None:
    """Replaces the equations below `body` by their TeX, and <sup> and <sub> by ^ and _."""
    for node in body.xpath(".//*[contains(name(), ':')]"):  # as EPUBs write it: <m:math>, <m:mi>
        prefix, _, name = node.tag.partition(":")
        if prefix in ("m", "mml", "math", "mathml"):
            node.tag = name
    for node in body.xpath(_DRAWN):
        if (after := node.getnext()) is not None and (after.get("type") or "").startswith(_SCRIPT):
            replace(node, "")
        elif (math := node.find(".//math")) is not None:
            replace(node, dollars(tex(math), _is_display(node, math)))
        elif (drawn := mathml(node)) is not None:
            replace(node, dollars(tex(drawn), _is_display(node, drawn)))
        elif "Preview" in (node.get("class") or ""):
            replace(node, "")  # what is shown until the equation is drawn
        else:
            replace(node, node.text_content())  # better its letters than nothing
    for math in list(body.iter("math")):
        replace(math, dollars(tex(math), _is_display(math, math)))
    for script in body.xpath(f".//script[starts-with(@type, '{_SCRIPT}')]"):
        replace(script, dollars(script.text or "", "display" in script.get("type")))
    for image in list(body.iter("img")):
        alt = (image.get("alt") or "").strip()
        if alt and _FORMULA_CLASSES.search(image.get("class") or ""):
            replace(image, dollars(alt, False))
    for node in list(body.iter("sup", "sub")):
        text = node.text_content().strip()
        if 0 < len(text) <= 40 and node.find(".//a") is None:
            mark = "^" if node.tag == "sup" else "_"
            replace(node, mark + (text if len(text) == 1 else f"{{{text}}}"))
    join_replaced(body)


def replace(node: Any, text: str) -> None:
    """Puts a text in an element's place; `join_replaced` makes it one with the text around it."""
    if node.getparent() is not None:
        node.clear(keep_tail=True)
        node.tag, node.text = _REPLACED, text


def join_replaced(body: Any) -> None:
    """Ends a number of `replace`s: one by one, each would copy the paragraph so far."""
    from lxml.etree import strip_tags

    strip_tags(body, _REPLACED)


def dollars(source: str, display: bool) -> str:
    """A formula as running text; one that has dollars already stays as it is."""
    source = _SPACE.sub(" ", source).strip()
    if source.startswith(r"{\displaystyle ") and source.endswith("}"):
        source = source.removeprefix(r"{\displaystyle ")[:-1].strip()
    if not source or source.startswith("$"):
        return source
    return f"$${source}$$" if display else f"${source}$"


def tex(math: Any) -> str:
    """The TeX of a <math> element: what its author wrote, or a translation."""
    for annotation in math.iter("annotation"):
        if annotation.get("encoding") == _TEX:
            return str(annotation.text_content())
    return str(math.get("alttext") or "") or _row(math)


def _is_display(node: Any, math: Any) -> bool:
    outer = node.getparent()
    classes = f"{node.get('class')} {outer.get('class') if outer is not None else ''}"
    return (
        math.get("display") == "block"
        or node.get("display") == "true"
        or "katex-display" in classes
        or "MathJax_Display" in classes
    )


def _children(node: Any) -> list[Any]:
    return [c for c in node if isinstance(c.tag, str) and not c.tag.startswith("annotation")]


def _row(node: Any) -> str:
    parts: list[str] = []
    for child in _children(node):
        if not (part := _element(child)):
            continue  # signs that are not seen, as between a function and what it is applied to
        # a command's name ends where the next letter must not begin
        if parts and re.search(r"\\[a-zA-Z]+$", parts[-1]) and part[:1].isalnum():
            part = " " + part
        parts.append(part)
    return "".join(parts)


def _element(node: Any) -> str:
    tag = node.tag.lower()
    if tag in ("mi", "mn", "mo", "mtext", "ms"):
        return _leaf(node, tag)
    parts = [_element(c) for c in _children(node)] if tag in _BUILT else []
    if tag in _BUILT and len(parts) >= _BUILT[tag][0]:
        base = _braces(parts[0]) if tag in ("mfrac", "mroot") else _base(parts[0])
        return _BUILT[tag][1].format(base, *(_braces(p) for p in parts[1:]))
    if tag == "msqrt":
        return rf"\sqrt{{{_row(node)}}}"
    if tag in ("mover", "munder") and len(_children(node)) == 2:
        return _marked(tag, *_children(node))
    if tag == "mfenced":
        inner = ",".join(_element(c) for c in _children(node))
        return f"{_signs(node.get('open') or '(')}{inner}{_signs(node.get('close') or ')')}"
    if tag == "mtable":
        rows = [" & ".join(_row(cell) for cell in _children(row)) for row in _children(node)]
        return r"\begin{matrix}" + r" \\ ".join(rows) + r"\end{matrix}"
    return _row(node)


# element: (children it must have, its TeX)
_BUILT = {
    "msup": (2, "{0}^{1}"),
    "msub": (2, "{0}_{1}"),
    "msubsup": (3, "{0}_{1}^{2}"),
    "munderover": (3, "{0}_{1}^{2}"),
    "mfrac": (2, r"\frac{0}{1}"),
    "mroot": (2, r"\sqrt[{1}]{0}"),
}


def _marked(tag: str, base: Any, mark: Any) -> str:
    """What has something above or below it: a sign that is a command in TeX, or a limit."""
    names, limit = (_ABOVE, "^") if tag == "mover" else (_BELOW, "_")
    if name := names.get(mark.text_content().strip()):
        return rf"\{name}{_braces(_element(base))}"
    return f"{_base(_element(base))}{limit}{_braces(_element(mark))}"


def _braces(part: str) -> str:
    return f"{{{part}}}"


def _base(part: str) -> str:
    """A power's base; a single sign, number or command needs no braces."""
    return part if re.fullmatch(r"\\[a-zA-Z]+|\w*|.", part) else _braces(part)


def _leaf(node: Any, tag: str) -> str:
    text = _SPACE.sub(" ", node.text_content()).strip()
    if tag in ("mtext", "ms") and text:
        return rf"\text{{{text}}}"
    if tag == "mi" and len(text) > 1 and text.isascii() and text.isalpha():
        return rf"\{text}" if text in _FUNCTIONS else rf"\mathrm{{{text}}}"
    return _signs(text)


def _signs(text: str) -> str:
    return "".join(_SYMBOLS.get(c, c) for c in text)


_FUNCTIONS = {
    "sin", "cos", "tan", "log", "ln", "exp", "lim", "max", "min", "det", "gcd", "sup", "inf",
}  # fmt: skip
