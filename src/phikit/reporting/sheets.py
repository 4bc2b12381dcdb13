"""Tables and texts to look at, once written and shown twice: in a terminal, and as an HTML page."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from phikit.files import write_atomic
from phikit.reporting.pages import template

Cell = str | int | float


@dataclass(frozen=True)
class Block:
    """A text shown as it is, under a heading; `note` is a line about it."""

    title: str
    text: str
    note: str = ""
    good: bool | None = None


@dataclass
class Section:
    """A table, or texts, or both. Numbers stand to the right; a float is a share, shown as such."""

    title: str
    note: str = ""
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Cell]] = ()
    blocks: Sequence[Block] = ()

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [
            bool(self.rows)
            and all(isinstance(row[i], int | float) or row[i] == "" for row in self.rows)
            for i in range(len(self.head))
        ]

    @property
    def shown(self) -> list[list[str]]:
        return [[cell(value) for value in row] for row in self.rows]


@dataclass
class Sheet:
    """A page. `lead` says in a line or two what it is about; `figures` are (name, value)."""

    title: str
    lead: str
    figures: Sequence[tuple[str, Cell]] = ()
    sections: Sequence[Section] = ()


def cell(value: Cell) -> str:
    """A whole number with separators, a share in per cent, a text as it is."""
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1%}"


def text(sheet: Sheet, width: int = 100, lines: int = 12) -> str:
    """The sheet for a terminal of `width` columns; a block shows its first lines."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    console = Console(
        file=out, width=width, color_system=None, highlight=False, markup=False, emoji=False
    )
    console.print(Text(sheet.title))
    console.print(Text(sheet.lead))
    if sheet.figures:
        console.print(Text(" · ".join(f"{name} {cell(value)}" for name, value in sheet.figures)))
    for section in sheet.sections:
        console.print(Text(f"\n{section.title}"))
        console.print(Text("─" * min(width, max(len(section.title), 20))))
        if section.note:
            console.print(Text(section.note))
        if section.rows:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="")
            for name, number in zip(section.head, section.numeric, strict=True):
                table.add_column(
                    Text(name), justify="right" if number else "left", no_wrap=number,
                    overflow="fold",
                )  # fmt: skip
            for row in section.shown:
                table.add_row(*(Text(value) for value in row))
            console.print(table)
        for block in section.blocks:
            console.print(Text(f"\n▸ {block.title}"))
            if block.note:
                console.print(Padding(Text(block.note), (0, 0, 0, 2)))
            console.print(Padding(Text(_first(block.text, lines, width - 4)), (0, 0, 0, 4)))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _first(text: str, lines: int, width: int) -> str:
    """The first lines of a text, long ones counted as the lines that they take."""
    kept, used = [], 0
    every = text.strip().split("\n")
    for number, line in enumerate(every):
        need = max(1, -(-len(line) // width))
        if used + need > lines:
            room = (lines - used) * width
            if room > 0:
                kept.append(line[:room])
            left = len(every) - number
            kept.append(f"… ({left} more {'line' if left == 1 else 'lines'})")
            break
        kept.append(line)
        used += need
    return "\n".join(kept)


def html(sheet: Sheet) -> str:
    """The sheet as one self-contained page; all that it shows is escaped."""
    return template("sheet.html").render(sheet=sheet, cell=cell)


def write(sheet: Sheet, path: Path) -> Path:
    """Writes the page."""
    write_atomic(path, html(sheet))
    return path
