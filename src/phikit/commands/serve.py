"""`phikit serve`: models behind OpenAI's HTTP interface."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from phikit.errors import PhikitError


def serve(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL", help="As for `phikit chat`, or NAME=MODEL to choose the name."
        ),
    ],
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0 takes a free one.")
    ] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys that clients may use, one a line.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL/]NAME=DIR",
            help="A LoRA adapter, served as a model of this name beside its own; repeatable.",
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples generated at once, per model.")
    ] = 64,
    cache: Annotated[
        float | None,
        typer.Option(min=0, metavar="GIB", help="KV cache of each model [half of free memory]."),
    ] = None,
    quant: Annotated[
        str,
        typer.Option(
            metavar="int8|int4",
            help="Quantise the weights first; the copy is kept in phikit's cache.",
        ),
    ] = "",
    invariant: Annotated[
        bool,
        typer.Option(
            "--invariant", help="Answers that do not depend on concurrent requests; slower."
        ),
    ] = False,
    speculate: Annotated[
        str,
        typer.Option(
            metavar="lookup|MODEL",
            help="Speculative decoding: guess from the text so far, or by a small model; helps "
            "with few clients.",
        ),
    ] = "",
    kv_cache: Annotated[
        str, typer.Option("--kv-cache", metavar="int8", help="Keep keys and values in 8 bits.")
    ] = "",
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The most a client may ask for.")
    ] = None,
    max_queue: Annotated[
        int, typer.Option(min=1, metavar="N", help="Samples running or waiting, per model.")
    ] = 1024,
    max_requests: Annotated[
        int, typer.Option(min=1, metavar="N", help="Requests in flight.")
    ] = 256,
    max_body: Annotated[float, typer.Option(min=0, metavar="MIB", help="Size of a request.")] = 4.0,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="S", help="Seconds a request may take.")
    ] = 600.0,
    drain: Annotated[
        float,
        typer.Option(min=0, metavar="S", help="Seconds for requests in flight after SIGTERM."),
    ] = 30.0,
) -> None:
    """Serve models over an OpenAI-compatible HTTP API.

    There is a chat page at /, the API under /v1, and metrics for Prometheus at /metrics.

    \b
    phikit serve runs/nano
    phikit serve small=smollm2 phi-4-mini --port 8000 --api-key-file keys.txt
    phikit serve phi-4 --quant int4 --kv-cache int8 --speculate lookup
    phikit serve phi-4-mini --adapter law=runs/law/adapter
    curl localhost:8000/v1/models
    """
    from phikit import fetch

    found: dict[str, Path] = {}
    for given in model:
        name, equals, what = given.rpartition("=")
        if not equals or not name:
            name, what = Path(given).name or given, given
        if name in found:
            raise PhikitError(f"two models are named {name!r}", "give NAME=MODEL")
        found[name] = fetch.resolve(what, say=_say)
    adapters = _adapters(adapter or [], list(found))
    if quant:
        found = {name: _quantised(directory, quant) for name, directory in found.items()}
    from phikit.serve import guard, run
    from phikit.serve.requests import Limits
    from phikit.serve.worker import Settings

    keys = guard.read_keys(api_key_file) if api_key_file else []
    if not keys and host not in ("127.0.0.1", "localhost", "::1"):
        _say("no --api-key-file: whoever reaches this address can use the models")
    limits = Limits(
        body=int(max_body * 2**20), tokens=max_tokens, open=max_queue, requests=max_requests,
        timeout=timeout, drain=drain,
    )  # fmt: skip
    bound = None if cache is None else int(cache * 2**30)
    if speculate not in ("", "lookup"):
        speculate = str(fetch.resolve(speculate, say=_say))
    settings = Settings(
        rows, bound, invariant=invariant, speculate=speculate, cache=kv_cache
    )  # fmt: skip
    run.serve(found, host, port, limits, keys, settings, _say, adapters)


def _quantised(directory: Path, kind: str) -> Path:
    """The model with its weights rounded to nearest, made now if it was not made before.

    Raises:
        PhikitError: it is no directory of a model that can be quantised, or there is no such kind.
    """
    from phikit.engine.quant import calibrate
    from phikit.engine.quant.packing import Scheme
    from phikit.engine.quant.settings import Settings
    from phikit.files import cache_folder

    how = Settings(Scheme(kind, 0 if kind == "int8" else 32))
    told = [str(directory.resolve())]
    for file in sorted(directory.glob("*")):
        told.append(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}")
    number = hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
    place = cache_folder() / "quantised" / f"{directory.name}-{kind}-{number}"
    if not place.exists():
        _say(f"rounding {directory} to {kind}: {place}")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as unfinished:
            calibrate.quantise(directory, Path(unfinished) / "whole", how)
            try:
                (Path(unfinished) / "whole").rename(place)
            except OSError:
                if not place.exists():  # else another server has made the same meanwhile
                    raise
    return place


def _adapters(given: list[str], models: list[str]) -> dict[str, dict[str, Path]]:
    """By model, the adapters' names and directories.

    Raises:
        PhikitError: one is not well formed, or it is not clear which model it is for.
    """
    found: dict[str, dict[str, Path]] = {}
    taken = set(models)
    for one in given:
        name, _, folder = one.partition("=")
        model, slash, name = name.rpartition("/")
        if not slash and len(models) == 1:
            model = models[0]
        if not folder or not name or model not in models:
            raise PhikitError(
                f"--adapter {one!r} is not [MODEL/]NAME=DIR",
                f"the models are {', '.join(models)}; with several, MODEL/ says which",
            )
        if name in taken:
            raise PhikitError(f"two models are named {name!r}", "give the adapter another name")
        taken.add(name)
        found.setdefault(model, {})[name] = Path(folder)
    return found


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command("serve", no_args_is_help=True)(serve)
