"""`phikit synth list | show | try | run | report`: dataset types as files, and corpora of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from phikit.errors import PhikitError

_Types = Annotated[
    Path | None,
    typer.Option("--types", metavar="DIR", help="A folder with dataset types of your own."),
]
_Verifiers = Annotated[
    list[str] | None,
    typer.Option(
        "--verifier",
        metavar="FILE.py:NAME",
        help="A verifier of your own that these types name; repeatable.",
    ),
]
_Teacher = typer.Option(
    "--teacher", metavar="URL|MODEL", help="An OpenAI-compatible .../v1 address, or a model."
)
_AtUrl = Annotated[
    str, typer.Option("--name", metavar="NAME", help="The model's name at the address.")
]


def _renamed(context: typer.Context, option: typer.CallbackParam, value: str) -> None:
    """
    Raises:
        PhikitError: an option is given by the name that it had.
    """
    old = option.opts[0]
    new = {"--model": "--name", "--url": "--teacher"}[old]
    if value:
        raise PhikitError(f"there is no option {old} here", f"write {new} {value}")


_OldModel = Annotated[str, typer.Option("--model", hidden=True, callback=_renamed)]
_OldUrl = Annotated[str, typer.Option("--url", hidden=True, callback=_renamed)]
_Name = Annotated[str, typer.Argument(metavar="TYPE", help="A dataset type's name.")]


def list_types(types: _Types = None, verifiers: _Verifiers = None) -> None:
    """List the dataset types: what each is for, and its seed."""
    from phikit.synth import declared_types
    from phikit.verify.own import load_all

    load_all(verifiers or ())
    found = declared_types.read_types(types)
    domain = ""
    for kind in sorted(found.values(), key=lambda k: (k.domain, k.name)):
        if kind.domain != domain:
            domain = kind.domain
            print(f"\n{domain}")
        start = "" if kind.seed == "none" else f" (from a {kind.seed})"
        print(f"  {kind.name:<28} {kind.purpose}{start}")
    print(f"\n{len(found)} types; phikit synth show TYPE prints one, to be copied and changed.")


def show(name: _Name, types: _Types = None, verifiers: _Verifiers = None) -> None:
    """Print a dataset type's YAML file, to copy and change."""
    from phikit.synth import declared_types
    from phikit.verify.own import load_all

    load_all(verifiers or ())
    found = declared_types.read_types(types)
    declared_types.find_type(name, found)
    own = types / f"{name}.yaml" if types else None
    path = own if own and own.exists() else declared_types.SHIPPED / f"{name}.yaml"
    print(path.read_text(encoding="utf-8"), end="")


def try_type(
    kind: _Name,
    teacher: Annotated[str, _Teacher],
    name: _AtUrl = "",
    seed_file: Annotated[
        Path | None, typer.Option("--seed-file", metavar="FILE", help="The text it starts from.")
    ] = None,
    index: Annotated[int, typer.Option(min=0, metavar="N", help="Which sample of it.")] = 0,
    key_file: Annotated[
        str, typer.Option("--api-key-file", metavar="FILE", help="Holds the endpoint's key.")
    ] = "",
    store: Annotated[
        Path, typer.Option(metavar="FILE", help="Where paid replies are kept.")
    ] = Path("replies.jsonl"),
    types: _Types = None,
    verifiers: _Verifiers = None,
    old_model: _OldModel = "",
    old_url: _OldUrl = "",
) -> None:
    """Write one sample, showing every prompt, reply and verdict.

    \b
    phikit synth try school-word-problem --teacher http://127.0.0.1:8000/v1 --name smollm2
    phikit synth try reading-summary --teacher smollm2 --seed-file text.txt
    """
    from phikit import trying
    from phikit.verify.own import load_all

    load_all(verifiers or ())
    asked = trying.chosen(teacher, name, key_file)
    print(trying.one(kind, asked, store, seed_file, index, types))


def run(
    types: Annotated[
        list[str] | None,
        typer.Argument(metavar="TYPE", help="Dataset types [all that the seeds allow]."),
    ] = None,
    teacher: Annotated[str, _Teacher] = "",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the corpus goes.")] = Path(
        "corpus"
    ),
    seeds: Annotated[
        list[Path] | None,
        typer.Option("--seeds", metavar="DOCS", help="Documents: a folder or a file; repeatable."),
    ] = None,
    name: _AtUrl = "",
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Samples to accept.")] = 100,
    key_file: Annotated[
        str, typer.Option("--api-key-file", metavar="FILE", help="Holds the endpoint's key.")
    ] = "",
    items: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Evaluation items that the corpus must not hold."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="See `phikit synth declared --help`."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of every random stream.")] = 0,
    threads: Annotated[
        int, typer.Option(metavar="N", help="CPU threads, for a model in this process.")
    ] = 2,
    folder: _Types = None,
    verifiers: _Verifiers = None,
    old_model: _OldModel = "",
    old_url: _OldUrl = "",
) -> None:
    """Write a corpus with a teacher model.

    After an interruption the same command goes on where it stopped; no reply is paid for twice.

    \b
    phikit synth run --seeds docs/ --teacher http://127.0.0.1:8000/v1 --name smollm2 --out corpus
    phikit synth run reading-summary code-explain --seeds src/ --teacher smollm2 --count 50
    phikit synth run ... --set teacher.max_total_tokens=1000000 --set teacher.in_flight=200
    """
    from phikit import synth_runs
    from phikit.commands.looking import show as show_sheet
    from phikit.reporting import corpora

    given = (f"teacher.key_file={key_file}",) if key_file else ()
    job = synth_runs.Job(
        tuple(types or ()), tuple(seeds or ()), teacher, name, count, folder, items,
        (*given, *(settings or ())), seed, threads, tuple(verifiers or ()),
    )  # fmt: skip
    synth_runs.run(job, out)
    show_sheet(corpora.sheet(out, shown=0), None, 0)


def report(
    corpus: Annotated[Path, typer.Argument(metavar="DIR", help="A corpus of `phikit synth run`.")],
    samples: Annotated[int, typer.Option(min=0, metavar="N", help="Samples to read.")] = 3,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the choice of samples.")] = 0,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page in place of text.")
    ] = None,
    width: Annotated[int, typer.Option(min=0, metavar="N", help="Columns.")] = 0,
) -> None:
    """Report a corpus's yield, cost and coverage.

    \b
    phikit synth report corpus
    phikit synth report corpus --html corpus.html
    """
    from phikit.commands.looking import show as show_sheet
    from phikit.reporting import corpora

    show_sheet(corpora.sheet(corpus, samples, seed), html, width)


def add(group: typer.Typer) -> None:
    """Adds these commands to `phikit synth`."""
    group.command("list")(list_types)
    group.command("show", no_args_is_help=True)(show)
    group.command("try", no_args_is_help=True)(try_type)
    group.command("run", no_args_is_help=True)(run)
    group.command("report", no_args_is_help=True)(report)
