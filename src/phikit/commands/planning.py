"""`phikit plan`: what a training or a service would take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def plan_for(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A member, a model directory, or llama-3.1-8b, -70b, -405b."
        ),
    ],
    gpus: Annotated[int, typer.Option(min=1, metavar="N", help="How many GPUs.")] = 1,
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="a100, h100, h100-hbm2e, h200 or b200.")
    ] = "h100",
    tokens: Annotated[
        float | None,
        typer.Option(metavar="N", help="Plan training on this many tokens [plan serving]."),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tokens per sequence [the model's].")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="bf16|int8|int4", help="Weights when serving.")
    ] = "bf16",
    utilisation: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            metavar="X",
            help="Part of the GPU's peak [training: estimated, serving: 0.4].",
        ),
    ] = None,
    price: Annotated[
        float, typer.Option(metavar="X", help="Of one GPU for one hour, an assumption.")
    ] = 2.5,
    sequences: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="At once: per GPU group [1], or served [all that fit]."
        ),
    ] = None,
    tensor: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tensor parallelism (training).")
    ] = 1,
    pipeline: Annotated[
        int, typer.Option(min=1, metavar="N", help="Pipeline stages (training).")
    ] = 1,
    chunks: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Chunks per pipeline stage; above 1: interleaved."),
    ] = 1,
    microbatches: Annotated[
        int, typer.Option(min=1, metavar="N", help="Microbatches through the pipeline, per step.")
    ] = 8,
    context_parallel: Annotated[
        int, typer.Option(min=1, metavar="N", help="Context parallelism (training).")
    ] = 1,
    recompute: Annotated[
        str,
        typer.Option(
            metavar="none|selective|full", help="Activations recomputed in the backward pass."
        ),
    ] = "full",
    float8: Annotated[bool, typer.Option("--float8", help="Matrix products in float8.")] = False,
    eager: Annotated[bool, typer.Option("--eager", help="Without torch.compile.")] = False,
    async_tensor: Annotated[
        bool,
        typer.Option("--async-tensor", help="Overlap the communication of tensor parallelism."),
    ] = False,
) -> None:
    """Estimate memory, time and cost of training or serving a model.

    With --tokens: of training. Without: of serving.

    \b
    phikit plan phi-4 --gpus 1920 --tokens 9.8e12 --context 4096 --utilisation 0.25
    phikit plan phi-4 --gpus 64 --tokens 1e12 --context 4096 --recompute selective
    phikit plan phi-4 --gpus 2 --gpu h100 --precision int8
    """
    from phikit.models import plan
    from phikit.models.gpus import gpu_named
    from phikit.models.throughput import Setting

    shape, device = _shape(model), gpu_named(gpu)
    length = context or shape.max_positions
    if tokens is None:
        reached = utilisation or 0.4
        use = plan.serving(shape, device, gpus, length, precision, reached, price, sequences)
        print(plan.serving_text(use, device, gpus, length, precision))
        return
    setting = Setting(
        gpus=gpus, context=length, sequences=sequences or 1, tensor=tensor, pipeline=pipeline,
        context_parallel=context_parallel, chunks=chunks, microbatches=microbatches,
        recompute=recompute, float8=float8, compiled=not eager, async_tensor=async_tensor,
    )  # fmt: skip
    run = plan.training(shape, device, setting, tokens, price, utilisation)
    print(plan.training_text(run, device, gpus, tokens))


def _shape(name: str) -> Any:
    """The configuration that a name, or a directory with a `config.json`, means."""
    from phikit.models.family import config
    from phikit.models.throughput import YARDSTICKS

    if name.lower() in YARDSTICKS:
        return YARDSTICKS[name.lower()]
    if (Path(name) / "config.json").exists():
        from phikit.models.architectures import read_config

        return read_config(Path(name))
    return config(name)


def add(app: typer.Typer) -> None:
    """Adds this command to the program."""
    app.command("plan", no_args_is_help=True)(plan_for)
