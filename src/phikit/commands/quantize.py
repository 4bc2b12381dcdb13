"""`phikit quantize`: a model in 8 or 4 bits, and what that costs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[str, typer.Argument(help="A model directory, or a published model's name.")],
    to: Annotated[str, typer.Option("--to", help="int8 or int4.")] = "int4",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the quantised model goes.")
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Weights that share a scale: 32, 64, 128; int8 also 0, whole rows [int4: 32, "
            "int8: 0].",
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="rtn rounds to nearest; gptq is calibrated on text.")
    ] = "rtn",
    head: Annotated[str, typer.Option(help="The output layer: same, bf16, int8 or int4.")] = "same",
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Text to calibrate on [Python's documentation]."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Print a table of quality, size and speed.")
    ] = False,
) -> None:
    """Make a quantised copy of a model, which chat and the other commands then run.

    Rounding to nearest reads the model tensor by tensor and never holds the whole of it.

    \b
    phikit quantize smollm2 --to int4 --method gptq --out smollm2-int4 --check
    phikit quantize microsoft/phi-4 --to int4 --out phi-4-int4
    phikit chat smollm2-int4
    """
    from phikit import fetch
    from phikit.engine.quant import calibrate
    from phikit.engine.quant.packing import Scheme
    from phikit.engine.quant.settings import Settings
    from phikit.errors import PhikitError
    from phikit.files import explain_os_errors

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    if out is None:
        raise PhikitError("--out is missing", "say where the quantised model goes: --out DIR")
    how = Settings(
        Scheme(to, (0 if to == "int8" else 32) if group is None else group), head, method
    )
    source = fetch.resolve(model, say=say)
    texts = None
    if text is not None:
        with explain_os_errors(text, "reading"):
            texts = [text.read_text()]
    shown = [0]

    def progress(name: str, part: float) -> None:
        if int(part * 10) > shown[0]:
            shown[0] = int(part * 10)
            say(f"{part:4.0%}  {name}")

    calibrate.quantise(source, out, how, texts, progress=progress)
    print(out)
    if check:
        from phikit.evals import quantised

        name = f"{to} {method}"
        print(quantised.table(quantised.compare(source, {name: out}, say=say)))


def add(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command("quantize", no_args_is_help=True)(quantize)
