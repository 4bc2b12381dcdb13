"""`phikit data inspect | trace`: looking at a corpus, and following one record through it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page in place of text.")
]
_Width = Annotated[
    int, typer.Option("--width", min=0, metavar="N", help="Columns [the terminal's].")
]


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A run directory, a stage's folder, or a Parquet file.")
    ],
    samples: Annotated[
        int, typer.Option(min=0, metavar="N", help="Texts of each kind to read.")
    ] = 4,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the choice of texts.")] = 0,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Counts tokens [the run's own].")
    ] = None,
    html: _Html = None,
    width: _Width = 0,
) -> None:
    """What is in a corpus: counts, lengths, texts to read, what was rejected and why.

    \b
    phikit data inspect runs/nano
    phikit data inspect runs/nano/03-textbook --samples 10 --html textbook.html
    """
    from phikit.reporting import inspection

    show(inspection.sheet(path, samples, seed, tokenizer), html, width)


def trace(
    name: Annotated[str, typer.Argument(metavar="ID", help="A record's id, or its beginning.")],
    where: Annotated[
        list[Path],
        typer.Option("--in", metavar="DIR", help="Run directories and corpora to look through."),
    ],
    html: _Html = None,
    width: _Width = 0,
) -> None:
    """Where a sample or document is from, and what it went into.

    Back to the document, the prompt, the teacher's replies and the verdicts; forward to shards,
    runs and checkpoints.

    \b
    phikit data trace 5be0f52d9c11ab03 --in runs/nano
    """
    from phikit.reporting import tracing

    show(tracing.sheet(name, where), html, width)


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
