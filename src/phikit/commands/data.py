"""`phikit data read | build`: files of one's own as documents, and as a whole corpus."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

_Paths = Annotated[list[Path], typer.Argument(metavar="PATH", help="Files and folders.")]
_Out = Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")]
_Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as reader.licence=MIT."),
]


def read(paths: _Paths, out: _Out, settings: _Settings = None) -> None:
    """Read files of many kinds into documents.parquet.

    Text, source code, JSON lines, Parquet, WARC, HTML, TeX, EPUB, PDF and Word. The kind is told
    by the content where possible, else by the name. What cannot be read is listed beside it.

    \b
    phikit data read papers/ crawl.warc.gz --out documents
    """
    from phikit import corpora

    print(corpora.read(paths, out, settings or []))


def build(
    paths: _Paths,
    out: _Out,
    items: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Evaluation items that the corpus must not hold (Parquet, or a stage's folder).",
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write token ids, by the tokenizer.json in this directory."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=0, metavar="N", help="Size of the mixture; 0: every document once.")
    ] = 0,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weight",
            metavar="CLASS=W",
            help="Share of a source class in the mixture; repeatable.",
        ),
    ] = None,
    settings: _Settings = None,
    workers: Annotated[int, typer.Option(min=1, metavar="N", help="Processes.")] = 2,
    ray: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Work on this Ray cluster; 'local' starts one here."),
    ] = "",
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the mixture's order.")] = 0,
) -> None:
    """Build a corpus: read, filter, deduplicate, decontaminate, tokenise, mix.

    It works shard by shard, so only the disk bounds the size. After an interruption the same
    command goes on; the result does not depend on the number of workers.

    \b
    phikit data build crawl/ --out corpus --set 'filters.prose=[fineweb, language]'
    phikit data build crawl/ --out corpus --tokenizer runs/nano --tokens 50000000 --weight web=1
    """
    from phikit import corpora

    print(
        corpora.build(
            corpora.Request(
                tuple(paths), out, items, tokenizer, tokens, tuple(weights or ()),
                tuple(settings or ()), workers, ray, seed,
            ),
            lambda text: print(text, file=sys.stderr),
        )
    )  # fmt: skip


def add(group: typer.Typer) -> None:
    """Adds these commands to `phikit data`."""
    group.command("read", no_args_is_help=True)(read)
    group.command("build", no_args_is_help=True)(build)
