"""`phikit pivots run | show | stats | export | plan`: Pivotal Token Search on own problems."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

_Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a finished search.")]


def run(
    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="A model or run directory, a GGUF file, or a published name."
        ),
    ],
    problems: Annotated[
        Path,
        typer.Option(metavar="FILE", help="JSON lines, Parquet, or the folder of a stage."),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")],
    verifier: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="For problems that name none: math, number, choice, exact, code, "
            "refusal, format, gym, or one of your own, FILE.py:NAME.",
        ),
    ] = "",
    instruction: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help='Added to each problem, such as "End with a line Answer: and the number."',
        ),
    ] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A setting; `phikit pivots search -h` lists them."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of every random stream.")] = 0,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="CPU threads.")] = 2,
    url: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="Ask this endpoint (ending in /v1) for rollouts, as token ids, instead of "
            "running the model.",
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The model's name at --url [MODEL].")
    ] = "",
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the key for --url.")
    ] = None,
) -> None:
    """Search solutions for pivotal tokens; write preference pairs.

    After an interruption the same command goes on without sampling anything twice. The verifiers
    read the last \\boxed{...} or the last line "Answer: ..." of a solution.

    \b
    phikit pivots run --model smollm2 --problems sums.jsonl --verifier math --out found
    phikit pivots run --model runs/nano --problems runs/nano/17-pivot-problems --out found \\
        --set total_tokens=2000000 --set max_tokens=256
    phikit pivots run --model smollm2 --url http://localhost:8000/v1 --problems sums.jsonl \\
        --verifier math --out found
    """
    from phikit import fetch, pivot_runs
    from phikit.files import explain_os_errors

    directory = fetch.resolve(model, say=lambda text: print(text, file=sys.stderr))
    key = ""
    if api_key_file:
        with explain_os_errors(api_key_file, "reading"):
            key = api_key_file.read_text(encoding="utf-8").strip()
    job = pivot_runs.Job(
        directory, problems, verifier, instruction, tuple(settings or ()), seed, threads,
        url, name or model, key,
    )  # fmt: skip
    pivot_runs.run(job, out)
    print(pivot_runs.table(out))
    print(f"pairs: {out / 'pairs.parquet'}\nlook:  phikit pivots show {out}")


def show(
    folder: _Folder,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page [DIR/pivots.html].")
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, metavar="N", help="Solutions on the page, the richest first.")
    ] = 200,
) -> None:
    """Write an HTML page of the solutions and their pivotal tokens.

    Token by token, with the curve of p(success) and the evidence for each pivot.

    \b
    phikit pivots show found
    """
    from phikit import pivot_page

    print(pivot_page.write(folder, to or folder / "pivots.html", most))


def stats(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR", help="Folders of finished searches.")
    ],
    to_json: Annotated[bool, typer.Option("--json", help="As one line of JSON.")] = False,
) -> None:
    """Print statistics of the pivots: tokens, positions, sizes.

    Several searches are counted as one.

    \b
    phikit pivots stats found
    phikit pivots stats runs/pivots-ablation*/11-pivots
    """
    import json

    from phikit.pivots import statistics
    from phikit.pivots.read import search_folder

    measured = statistics.measure(search_folder(folder) for folder in folders)
    if to_json:
        print(json.dumps(statistics.as_json(measured), ensure_ascii=False))
    else:
        print(statistics.text(measured))


def export(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR", help="Folders of searches, or of other stages' pairs."),
    ],
    form: Annotated[
        str, typer.Option("--to", metavar="trl|parquet|jsonl", help="The file's format.")
    ],
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")],
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="Whose tokenizer decodes the ids [the search's].")
    ] = "",
) -> None:
    """Write the preference pairs as a file for a trainer.

    Each with its token ids, their texts and the evidence.

    \b
    phikit pivots export found --to trl --out pairs.parquet
    phikit pivots export found runs/mine/07-refusals --to jsonl --out pairs.jsonl
    """
    from phikit import fetch
    from phikit.chat.load import load_tokenizer
    from phikit.pivots import domains
    from phikit.pivots.export import TRL_HINT
    from phikit.pivots.export import export as write
    from phikit.pivots.read import pair_folder

    found = [pair_folder(folder) for folder in folders]
    pairs = [pair for one in found for pair in one.pairs()]
    directory = (
        fetch.resolve(model, say=lambda text: print(text, file=sys.stderr))
        if model
        else found[0].model
    )
    count = write(pairs, form, to, load_tokenizer(directory).decode)
    print(f"{to}: {count} pairs\n\n{domains.table(domains.count(pairs))}")
    if form == "trl":
        print(f"\n{TRL_HINT}")


def plan(
    folder: Annotated[Path, typer.Argument(metavar="PILOT", help="A small finished search.")],
    pairs: Annotated[int, typer.Option(min=1, metavar="N", help="How many pairs are wanted.")],
    tokens_per_s: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="X", help="The generator's rate [the pilot's]."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="Of the machine, in any currency.")
    ] = None,
    price_per_million: Annotated[
        float | None, typer.Option(min=0.0, metavar="X", help="Of a million sampled tokens.")
    ] = None,
) -> None:
    """Forecast what a number of pairs will take, from a pilot search.

    In problems, tokens, hours and money.

    \b
    phikit pivots plan found --pairs 10000 --price-per-hour 2.5
    """
    from phikit.pivots import plan as planning
    from phikit.pivots.read import search_folder

    forecast = planning.forecast(search_folder(folder), pairs, tokens_per_s)
    print(planning.text(forecast, price_per_hour, price_per_million))


def add(group: typer.Typer) -> None:
    """Adds these commands to `phikit pivots`."""
    for command in (run, show, stats, export, plan):
        group.command(command.__name__, no_args_is_help=True)(command)
