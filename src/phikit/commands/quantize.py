"""`phikit quantize`: a model in 8 or 4 bits, and what that costs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model directory, or a published model's name."),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="int8|int4", help="The precision of the weights.")
    ] = "int4",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the quantised model goes.")
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Weights that share a scale: 32, 64 or 128; 0 (int8 only): a whole row "
            "[int4: 32, int8: 0].",
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(metavar="rtn|gptq", help="rtn: round to nearest; gptq: calibrated on text."),
    ] = "rtn",
    head: Annotated[
        str, typer.Option(metavar="same|bf16|int8|int4", help="The output layer's precision.")
    ] = "same",
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to calibrate on [Python's documentation]."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print a table of quality, size and speed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON.")] = False,
) -> None:
    """Write a copy of a model with int8 or int4 weights.

    `phikit chat`, generate, serve and eval run the copy like any other model. With --check and
    without --out nothing is kept: every kind is made, and a table compares them, each with keys
    and values as they are and in 8 bits (`phikit serve --kv-cache int8`).

    \b
    phikit quantize smollm2 --check
    phikit quantize smollm2 --to int4 --method gptq --out smollm2-int4 --check
    phikit quantize microsoft/phi-4 --to int4 --out phi-4-int4
    phikit chat smollm2-int4
    """
    from phikit import fetch
    from phikit.engine.quant import calibrate
    from phikit.engine.quant.packing import Scheme
    from phikit.engine.quant.settings import Settings
    from phikit.errors import PhikitError
    from phikit.evals import quantised
    from phikit.files import read_text

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    if as_json and not check:
        raise PhikitError("--json writes the table of --check", "give --check as well")
    if out is None and not check:
        raise PhikitError("--out is missing", "say where the quantised model goes: --out DIR")

    def way(to: str, method: str) -> Settings:
        chosen = (0 if to == "int8" else 32) if group is None else group
        return Settings(Scheme(to, chosen), head, method)

    shown = quantised.as_json if as_json else quantised.table
    how = way(to, method)  # a wrong setting is said first
    source = fetch.resolve(model, say=say)
    texts = None
    if text is not None:
        if out is not None and method != "gptq":
            raise PhikitError(f"--text calibrates gptq; --method is {method}", "leave one out")
        texts = [read_text(text)]

    def make(how: Settings, where: Path) -> None:
        shown = [0]

        def progress(name: str, part: float) -> None:
            if int(part * 10) > shown[0]:
                shown[0] = int(part * 10)
                say(f"{how.scheme.kind} {how.method} {part:4.0%}  {name}")

        calibrate.quantise(source, where, how, texts, progress=progress)

    if out is not None:
        make(how, out)
        (say if as_json else print)(str(out))
        if check:
            print(shown(quantised.compare(source, {f"{to} {method}": out}, say=say)))
        return
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for kind, by in quantised.ways(source):
            made[f"{kind} {by}"] = Path(folder) / f"{kind}-{by}"
            make(way(kind, by), made[f"{kind} {by}"])
        print(shown(quantised.compare(source, made, say=say)))


def add(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command("quantize", no_args_is_help=True)(quantize)
