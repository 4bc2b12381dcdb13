"""`phikit chat`: talking to a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def chat(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A model or run directory, a GGUF file, or a published model's name.",
        ),
    ],
    prompt: Annotated[
        str, typer.Option("-p", "--prompt", metavar="TEXT", help="Answer this and stop.")
    ] = "",
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An image for the prompt; repeatable."),
    ] = None,
    audio: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A recording for the prompt, or in place of it; repeatable."
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="X",
            help="0 is greedy [as published, else 0.5; 0 with images or audio].",
        ),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="X", help="1 keeps all [as published, else 0.95].")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Limit of each answer [none].")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the sampling.")] = 0,
) -> None:
    """Talk to a model: a run's last, one in a directory, or published.

    A name such as microsoft/phi-4 is fetched from the Hugging Face hub unless it is in the hub's
    cache already. With -p, or with text on standard input, answer once and stop.

    \b
    phikit chat runs/nano
    phikit chat smollm2
    phikit chat microsoft/phi-4 --temperature 0 --max-tokens 500
    phikit chat runs/nano -p "Anna has 3 apples and buys 4 more. How many has she?"
    echo "What is 12 + 30?" | phikit chat runs/nano
    phikit chat microsoft/Phi-4-multimodal-instruct --image page.png --audio question.wav
    """
    from phikit import fetch

    directory = fetch.resolve(model, say=lambda text: print(text, file=sys.stderr))
    from phikit import terminal  # takes seconds to import: a wrong path is said at once
    from phikit.engine.talk import Manner
    from phikit.memory import keep_freed_memory

    keep_freed_memory()
    manner = Manner(temperature, top_p, max_tokens, seed)
    images, sounds = image or (), audio or ()
    typed = sys.stdin.isatty()
    if prompt or sounds or not typed:
        # a recording may be the whole prompt
        said = prompt or ("" if typed or images or sounds else sys.stdin.read())
        terminal.answer(directory, said, images, sounds, manner)
    else:
        terminal.converse(directory, images, sounds, manner)


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command("chat", no_args_is_help=True)(chat)
