"""What is left of a TeX file that pandoc refuses, once the parts that it stumbles over are out.

The body is cut where paragraphs end outside environments, and halves are tried until each part that
is refused stands alone; such a part is cut smaller, at blank lines and then around environments,
before it is given up. The preamble is tried line by line in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from phikit.data.reading.base import BrokenFile

REFUSED = "pandoc cannot read it"
_BODY = re.compile(r"\\begin\s*\{document\}(.*?)(?:\\end\s*\{document\}|\Z)", re.DOTALL)
_MARK = re.compile(
    r"(?P<blank>\n[ \t]*\n\s*)|\\begin\s*\{(?P<begin>[^}]*)\}|\\end\s*\{(?P<end>[^}]*)\}"
    r"|(?P<part>(?=\\(?:part|chapter|(?:sub)*section)\b))"
)
_BLANK = re.compile(r"\n[ \t]*\n\s*")
_AROUND = re.compile(r"(?=\\begin\s*\{)|\\end\s*\{[^}]*\}")


@dataclass(frozen=True)
class Part:
    """A part of a file: its source, the number of its first line, and why it is refused."""

    source: str
    line: int
    said: str = ""


Convert = Callable[[str], str]


def salvage(text: str, convert: Convert) -> tuple[str, list[Part]]:
    """The source without the parts that cannot be converted, and these.

    Args:
        convert: converts a whole file or raises `BrokenFile`.

    Raises:
        BrokenFile: nothing can be converted.
    """
    found = _BODY.search(text)
    before, body = (text[: found.start()], found[1]) if found else ("", text)
    refused: list[Part] = []
    lines = [Part(line + "\n", n) for n, line in enumerate(before.splitlines(), 1)]
    preamble = _source(_sound(lines, [], lambda s: convert(_file(s, "text")), refused))
    first = 1 + text.count("\n", 0, found.start(1) if found else 0)
    parts = _cut(Part(body, first), _ends_outside(body))
    kept = _sound(parts, [_at_blanks, _around], lambda s: convert(_file(preamble, s)), refused)
    if not any(part.source.strip() for part in kept):
        raise BrokenFile(REFUSED, refused[-1].said if refused else "no text")
    return _file(preamble, _source(kept)), sorted(refused, key=lambda part: part.line)


def _file(preamble: str, body: str) -> str:
    return f"{preamble}\\begin{{document}}\n{body}\n\\end{{document}}\n" if preamble else body


def _source(parts: Sequence[Part]) -> str:
    return "".join(part.source for part in parts)


def _sound(
    parts: list[Part],
    smaller: Sequence[Callable[[Part], list[Part]]],
    convert: Convert,
    refused: list[Part],
) -> list[Part]:
    """The parts that can be converted, in order; what cannot be goes to `refused`."""
    if not _source(parts).strip():
        return parts
    try:
        convert(_source(parts))
        return parts
    except BrokenFile as e:
        if e.reason == "no text":
            return parts  # a comment, a definition
        if e.reason != REFUSED:  # no time is left to find out more
            refused.append(Part(_source(parts), parts[0].line, f"{e.reason}: {e.excerpt}"))
            return []
        said = e.excerpt
    if len(parts) > 1:
        half = len(parts) // 2
        return [
            *_sound(parts[:half], smaller, convert, refused),
            *_sound(parts[half:], smaller, convert, refused),
        ]
    for at, cut in enumerate(smaller):
        if len(pieces := cut(parts[0])) > 1:
            return _sound(pieces, smaller[at:], convert, refused)
    refused.append(Part(parts[0].source, parts[0].line, said))
    return []


def _cut(part: Part, places: Iterator[int]) -> list[Part]:
    """A part, cut at these places."""
    begin, line = 0, part.line
    pieces = []
    for end in (*places, len(part.source)):
        if source := part.source[begin:end]:
            pieces.append(Part(source, line))
            line += source.count("\n")
            begin = end
    return pieces


def _ends_outside(body: str) -> Iterator[int]:
    """Where a paragraph ends and no environment is open; a heading closes what was left open."""
    open_now: list[str] = []
    for mark in _MARK.finditer(body):
        if mark["begin"] is not None:
            open_now.append(mark["begin"])
        elif mark["end"] is not None:
            if open_now and open_now[-1] == mark["end"]:
                open_now.pop()
        elif mark["blank"] is None:
            open_now.clear()
            yield mark.start()
        elif not open_now:
            yield mark.end()


def _at_blanks(part: Part) -> list[Part]:
    return _cut(part, (m.end() for m in _BLANK.finditer(part.source)))


def _around(part: Part) -> list[Part]:
    return _cut(part, (m.end() for m in _AROUND.finditer(part.source) if m.end()))
