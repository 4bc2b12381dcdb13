"""`phikit generate`: rollouts of the prompts in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="As for `phikit chat`; with --url, the tokenizer's directory."
        ),
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON lines: prompt (text), messages or prompt_ids; also adapter."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the lines go [standard output].")
    ] = None,
    n: Annotated[int, typer.Option(min=1, metavar="N", help="Rollouts of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the sampling.")] = 0,
    temperature: Annotated[float, typer.Option(min=0, metavar="X", help="0 is greedy.")] = 1.0,
    top_k: Annotated[int, typer.Option(min=0, metavar="N", help="0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(metavar="X", help="1 keeps all.")] = 1.0,
    min_p: Annotated[float, typer.Option(metavar="X", help="0 keeps all.")] = 0.0,
    max_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Limit of each rollout.")
    ] = 256,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Ends a rollout; repeatable.")
    ] = None,
    schema: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON schema that every rollout conforms to."),
    ] = None,
    regex: Annotated[
        str, typer.Option(metavar="REGEX", help="Expression that every rollout matches.")
    ] = "",
    grammar: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lark grammar that every rollout conforms to."),
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rollouts generated at once.")
    ] = 64,
    invariant: Annotated[
        bool,
        typer.Option(
            "--invariant", help="Results that do not depend on what else is in the batch; slower."
        ),
    ] = False,
    speculate: Annotated[
        str,
        typer.Option(
            metavar="lookup|MODEL",
            help="Speculative decoding: guess from the text so far, or by a small model.",
        ),
    ] = "",
    kv_cache: Annotated[
        str, typer.Option("--kv-cache", metavar="int8", help="Keep keys and values in 8 bits.")
    ] = "",
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A LoRA adapter in PEFT's layout, for prompts that name it; repeatable.",
        ),
    ] = None,
    url: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Ask this endpoint (ending in /v1) instead of running the model."
        ),
    ] = "",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The model's name at --url [MODEL].")
    ] = "",
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Holds the key for --url.")
    ] = None,
    ray: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Run engines on this Ray cluster; 'local' starts one here."
        ),
    ] = "",
    engines: Annotated[int, typer.Option(min=1, metavar="N", help="Engines, with --ray.")] = 1,
    threads: Annotated[
        int, typer.Option(min=1, metavar="N", help="CPU threads of each engine, with --ray.")
    ] = 1,
) -> None:
    """Sample completions of many prompts, as JSON lines.

    A line is written as soon as its rollout is finished: the indices of prompt and sample, the
    text, the token ids, and their log-probabilities under the distribution they were sampled from
    (logprobs) and under the model's own (raw_logprobs).

    \b
    phikit generate runs/nano prompts.jsonl --n 8 --out rollouts.jsonl
    phikit generate smollm2 prompts.jsonl --schema person.json --out people.jsonl
    phikit generate smollm2 prompts.jsonl --url http://localhost:8000/v1 --name smollm2
    phikit generate smollm2 prompts.jsonl --ray 10.0.0.1:6379 --engines 4 --threads 8
    """
    from phikit import fetch, generate_runs, prompts
    from phikit.engine.base import Sampling
    from phikit.files import read_text
    from phikit.memory import keep_freed_memory

    generate_runs.check_place(
        url, ray,
        {"--invariant": invariant, "--speculate": speculate, "--kv-cache": kv_cache,
         "--adapter": adapter},
        {"--name": name, "--api-key-file": api_key_file},
    )  # fmt: skip
    asked = prompts.read(file)
    directory = fetch.resolve(model, say=lambda text: print(text, file=sys.stderr))
    if speculate not in ("", "lookup"):
        speculate = str(fetch.resolve(speculate))
    sampling = Sampling(
        temperature, top_k, top_p, min_p, max_tokens, stop=tuple(stop or ()),
        constraint=generate_runs.constraint(schema, regex, grammar),
    )  # fmt: skip
    job = generate_runs.Job(
        directory, sampling, n, seed, batch, invariant, speculate, kv_cache, tuple(adapter or ()),
        url, name or model, read_text(api_key_file).strip() if api_key_file else "",
        ray, engines, threads,
    )  # fmt: skip
    keep_freed_memory()
    with generate_runs.rollouts(job, asked) as rows, _writer(out) as write:
        for row in rows:
            write(row)


@contextmanager
def _writer(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Writes a value as a line of JSON, at once."""
    from phikit.files import explain_os_errors

    with ExitStack() as stack:
        target: TextIO = sys.stdout
        if out is not None:
            with explain_os_errors(out, "writing"):
                target = stack.enter_context(out.open("w", encoding="utf-8"))

        def write(value: dict[str, Any]) -> None:
            with explain_os_errors(out or Path("/dev/stdout"), "writing"):
                print(json.dumps(value, ensure_ascii=False), file=target, flush=True)

        yield write


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command("generate", no_args_is_help=True)(generate)
