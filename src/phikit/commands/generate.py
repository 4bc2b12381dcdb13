"""`phikit generate`: rollouts of the prompts in a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phikit.errors import PhikitError

if TYPE_CHECKING:
    from phikit.engine.base import Constraint


def generate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="As for `phikit chat`; with --url, the tokenizer's directory."
        ),
    ],
    prompts: Annotated[
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
    from phikit import fetch

    asked = _read(prompts)
    directory = fetch.resolve(model, say=lambda text: print(text, file=sys.stderr))
    from phikit.chat.format import chat_format
    from phikit.chat.load import load_tokenizer
    from phikit.engine.base import Generator, Request, Sampling
    from phikit.engine.load import open_engine
    from phikit.engine.ray_pool import RayPool
    from phikit.engine.remote import RemoteGenerator
    from phikit.engine.stops import before_stop
    from phikit.train.adapters import load as load_adapter

    tokenizer = load_tokenizer(directory)
    form = chat_format(tokenizer)
    sampling = Sampling(
        temperature, top_k, top_p, min_p, max_tokens, form.stop_ids, tuple(stop or ()),
        constraint=_constraint(schema, regex, grammar),
    )  # fmt: skip
    requests = []
    for number, line in enumerate(asked, 1):
        if "prompt_ids" in line:
            ids = line["prompt_ids"]
        elif "messages" in line:
            ids = form.render(line["messages"], generation_prompt=True).ids
        else:
            ids = tokenizer.encode(line["prompt"])
        if not ids:
            raise PhikitError(f"{prompts}: line {number}: the prompt is empty")
        chosen = line.get("adapter", "")
        requests.append(Request(tuple(ids), sampling, n, seed, adapter=chosen))
    engine: Generator
    if url:
        key = _key(api_key_file) if api_key_file else ""
        engine = RemoteGenerator(url, name or model, key, tokenizer, in_flight=batch)
    elif ray:
        if adapter:
            raise PhikitError("engines on a Ray cluster run without adapters", "leave out --ray")
        engine = RayPool(directory, engines, threads, batch, None if ray == "local" else ray)
    else:
        if speculate not in ("", "lookup"):
            speculate = str(fetch.resolve(speculate))
        engine = open_engine(
            directory, batch, speculate=speculate, cache=kv_cache, invariant=invariant
        )
        weights: Any = engine.model
        for given in adapter or ():
            called, _, folder = given.partition("=")
            if not folder:
                raise PhikitError(f"--adapter {given!r} is not NAME=DIR")
            load_adapter(weights, Path(folder), called)
    target = out.open("w", encoding="utf-8") if out else sys.stdout
    try:
        for done in engine.generate(requests):
            rollout = done.rollout
            line = {
                "prompt": done.request,
                "sample": done.sample,
                "text": before_stop(form.text(rollout.completion_ids), sampling.stop),
                "finish": rollout.finish,
                "prompt_ids": rollout.prompt_ids,
                "completion_ids": rollout.completion_ids,
                "logprobs": rollout.logprobs,
                "raw_logprobs": rollout.raw_logprobs,
                **({"meta": rollout.meta} if rollout.meta else {}),
            }
            print(json.dumps(line, ensure_ascii=False), file=target, flush=True)
    finally:
        if out:
            target.close()
        if isinstance(engine, RayPool):
            engine.close()


def _constraint(schema: Path | None, regex: str, grammar: Path | None) -> Constraint | None:
    """The form that was asked for.

    Raises:
        PhikitError: there are two, or its file cannot be read.
    """
    from phikit.engine.base import Constraint
    from phikit.files import explain_os_errors

    given = [(k, v) for k, v in (("json_schema", schema), ("grammar", grammar)) if v is not None]
    if len(given) + bool(regex) > 1:
        raise PhikitError("--schema, --regex and --grammar are three forms", "give one of them")
    if regex:
        return Constraint("regex", regex)
    if not given:
        return None
    kind, path = given[0]
    with explain_os_errors(path, "reading"):
        return Constraint(kind, path.read_text(encoding="utf-8"))


def _read(path: Path) -> list[dict[str, Any]]:
    """The prompts, each with exactly one of the three forms.

    Raises:
        PhikitError: the file cannot be read, or a line is no prompt; names the line.
    """
    from phikit.files import explain_os_errors

    with explain_os_errors(path, "reading"):
        text = path.read_text(encoding="utf-8")
    found = list(_lines(path, text))
    if not found:
        raise PhikitError(f"{path} has no prompts")
    return found


def _lines(path: Path, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as e:
            raise PhikitError(f"{path}: line {number} is not valid JSON: {e}") from e
        value = {"prompt": value} if isinstance(value, str) else value
        forms = {"prompt": str, "messages": list, "prompt_ids": list}
        given = [k for k in forms if isinstance(value, dict) and k in value]
        if len(given) != 1 or not isinstance(value[given[0]], forms[given[0]]):
            raise PhikitError(
                f"{path}: line {number} is no prompt",
                'give {"prompt": "text"}, {"messages": [...]} or {"prompt_ids": [...]}',
            )
        yield value


def _key(path: Path) -> str:
    from phikit.files import explain_os_errors

    with explain_os_errors(path, "reading"):
        return path.read_text(encoding="utf-8").strip()


def add(app: typer.Typer) -> None:
    """Adds these commands to the program."""
    app.command("generate", no_args_is_help=True)(generate)
