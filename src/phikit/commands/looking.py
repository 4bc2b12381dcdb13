"""`phikit data inspect | trace`: looking at a corpus, and following one record through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phikit.errors import PhikitError

_Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page in place of text.")
]
_Width = Annotated[
    int, typer.Option("--width", min=0, metavar="N", help="Columns [the terminal's].")
]


def inspect(
    path: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="A run directory, a corpus, or your own documents."),
    ],
    samples: Annotated[
        int, typer.Option(min=0, metavar="N", help="Texts of each kind to read.")
    ] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the choice of texts.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Count tokens with this one [the run's own].")
    ] = None,
    html: _Html = None,
    width: _Width = 0,
) -> None:
    """Show what a corpus holds: counts, lengths, samples, rejections.

    \b
    phikit data inspect runs/nano
    phikit data inspect runs/nano/03-textbook --samples 10 --html textbook.html
    """
    from phikit.reporting import inspection

    show(inspection.sheet(path, samples, seed, tokenizer), html, width)


def trace(
    name: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or its beginning.")],
    where: Annotated[
        list[Path] | None,
        typer.Option(
            "--in", metavar="DIR", help="Run directories and corpora to look through [runs/*]."
        ),
    ] = None,
    html: _Html = None,
    width: _Width = 0,
) -> None:
    """Trace a sample or document to its origin and its uses.

    Back to the source document, the prompt, the teacher's replies and the verdicts; forward to the
    shards, runs and checkpoints that it went into.

    \b
    phikit data trace 5be0f52d9c11ab03
    phikit data trace 5be0f52d --in corpus --in docs
    """
    from phikit.reporting import tracing

    runs = sorted(p for p in Path("runs").glob("*") if p.is_dir())
    if not where and not runs:
        raise PhikitError("there are no runs here to look through", "name them with --in DIR")
    show(tracing.sheet(name, where or runs), html, width)


def show(sheet: object, html: Path | None, width: int) -> None:
    """Prints a sheet, or writes it as a page and prints where."""
    import shutil

    from phikit.reporting import sheets

    assert isinstance(sheet, sheets.Sheet)
    if html is not None:
        print(sheets.write(sheet, html))
        return
    columns = width or shutil.get_terminal_size((100, 24)).columns
    print(sheets.text(sheet, max(40, columns)), end="")


def add(group: typer.Typer) -> None:
    """Adds these commands to `phikit data`."""
    group.command("inspect", no_args_is_help=True)(inspect)
    group.command("trace", no_args_is_help=True)(trace)
