"""`phikit synth list | show | try`: dataset types as files, and one sample of one, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_Types = Annotated[
    Path | None,
    typer.Option("--types", metavar="DIR", help="A folder with dataset types of your own."),
]
_Name = Annotated[str, typer.Argument(metavar="TYPE", help="A dataset type's name.")]


def list_types(types: _Types = None) -> None:
    """The dataset types that are files: what each is for, and what it starts from."""
    from phikit.synth import declared_types

    found = declared_types.read_types(types)
    domain = ""
    for kind in sorted(found.values(), key=lambda k: (k.domain, k.name)):
        if kind.domain != domain:
            domain = kind.domain
            print(f"\n{domain}")
        start = "" if kind.seed == "none" else f" (from a {kind.seed})"
        print(f"  {kind.name:<28} {kind.purpose}{start}")
    print(f"\n{len(found)} types; phikit synth show TYPE prints one, to be copied and changed.")


def show(name: _Name, types: _Types = None) -> None:
    """A dataset type as its file: the start of one of your own."""
    from phikit.synth import declared_types

    found = declared_types.read_types(types)
    declared_types.find_type(name, found)
    own = types / f"{name}.yaml" if types else None
    path = own if own and own.exists() else declared_types.SHIPPED / f"{name}.yaml"
    print(path.read_text(encoding="utf-8"), end="")


def try_type(
    name: _Name,
    url: Annotated[
        str, typer.Option(metavar="URL", help="The teacher: an OpenAI-compatible .../v1 address.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="The teacher's model.")],
    seed_file: Annotated[
        Path | None, typer.Option("--seed-file", metavar="FILE", help="The text it starts from.")
    ] = None,
    index: Annotated[int, typer.Option(min=0, metavar="N", help="Which sample of it.")] = 0,
    key_file: Annotated[str, typer.Option(metavar="FILE", help="Holds the endpoint's key.")] = "",
    store: Annotated[
        Path, typer.Option(metavar="FILE", help="Where paid replies are kept.")
    ] = Path("replies.jsonl"),
    types: _Types = None,
) -> None:
    """Write one sample with a teacher, showing every prompt, reply and verdict.

    \b
    phikit synth try school-word-problem --url http://127.0.0.1:8000/v1 --model smollm2
    """
    from phikit import trying

    print(
        trying.one(
            name,
            trying.Endpoint(url=url, model=model, key_file=key_file),
            store,
            seed_file,
            index,
            types,
        )
    )


def add(group: typer.Typer) -> None:
    """Adds these commands to `phikit synth`."""
    group.command("list")(list_types)
    group.command("show", no_args_is_help=True)(show)
    group.command("try", no_args_is_help=True)(try_type)
