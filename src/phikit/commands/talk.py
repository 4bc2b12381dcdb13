"""`phikit chat`: talking to a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def chat(
    model: Annotated[
        str,
        typer.Argument(help="A model or run directory, a GGUF file, or a published model's name."),
    ],
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer this and stop.")
    ] = "",
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A picture that the prompt is about; may be repeated."),
    ] = None,
    audio: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A recording likewise; may be the whole prompt."),
    ] = None,
) -> None:
    """Talk to a model: the last one of a run, any model directory, or a published one.

    A name such as microsoft/phi-4 is fetched from the Hugging Face hub when it is not here.

    \b
    phikit chat runs/nano
    phikit chat smollm2
    phikit chat microsoft/phi-4
    phikit chat runs/nano -p "Anna has 3 apples and buys 4 more. How many has she?"
    echo "What is 12 + 30?" | phikit chat runs/nano
    phikit chat microsoft/Phi-4-multimodal-instruct --image page.png --audio question.wav
    """
    from phikit import fetch

    directory = fetch.resolve(model, say=lambda text: print(text, file=sys.stderr))
    from phikit import terminal  # takes seconds to import: a wrong path is said at once

    if image or audio:
        terminal.answer(directory, prompt, image or (), audio or ())
    elif prompt or not sys.stdin.isatty():
        terminal.answer(directory, prompt or sys.stdin.read())
    else:
        terminal.converse(directory)


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command("chat", no_args_is_help=True)(chat)
