"""`phikit generate`: rollouts of a file's prompts, here, at an endpoint or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phikit.engine.base import Constraint, Finished, Generator, Request, Sampling
from phikit.engine.stops import before_stop
from phikit.errors import PhikitError
from phikit.files import read_text
from phikit.prompts import Asker, Prompt


@dataclass(frozen=True)
class Job:
    """What is asked for.

    Attributes:
        model: a directory or a file; with `url`, whose tokenizer is used.
        sampling: what ends a completion is the model's own.
        n: rollouts of each prompt.
        batch: rollouts generated at once.
        speculate: "lookup", or the directory of a small model that guesses.
        adapters: "NAME=DIR" each.
        url, name, key: of an endpoint that runs the model, its name there, and what opens it.
        ray: the address of a Ray cluster with so many `engines` of so many `threads`.
    """

    model: Path
    sampling: Sampling
    n: int = 1
    seed: int = 0
    batch: int = 64
    invariant: bool = False
    speculate: str = ""
    kv_cache: str = ""
    adapters: Sequence[str] = ()
    url: str = ""
    name: str = ""
    key: str = ""
    ray: str = ""
    engines: int = 1
    threads: int = 1


@contextmanager
def rollouts(job: Job, prompts: Sequence[Prompt]) -> Iterator[Iterator[dict[str, Any]]]:
    """A JSON-able dict of every rollout, as soon as it is finished; the engine is open meanwhile.

    Raises:
        PhikitError: a prompt cannot be asked (names its line), or the engine cannot be opened.
    """
    asker = Asker(job.model)
    sampling = replace(job.sampling, stop_ids=asker.ends)
    requests = [
        Request(asker.ids(prompt), sampling, job.n, job.seed, adapter=prompt.adapter)
        for prompt in prompts
    ]
    with _engine(job, asker, prompts, requests) as engine:
        yield (_row(done, asker, sampling.stop) for done in engine.generate(requests))


def _row(done: Finished, asker: Asker, stop: Sequence[str]) -> dict[str, Any]:
    rollout = done.rollout
    return {
        "prompt": done.request,
        "sample": done.sample,
        "text": before_stop(asker.text(rollout.completion_ids), stop),
        "finish": rollout.finish,
        "prompt_ids": rollout.prompt_ids,
        "completion_ids": rollout.completion_ids,
        "logprobs": rollout.logprobs,
        "raw_logprobs": rollout.raw_logprobs,
        **({"meta": rollout.meta} if rollout.meta else {}),
    }


@contextmanager
def _engine(
    job: Job, asker: Asker, prompts: Sequence[Prompt], requests: Sequence[Request]
) -> Iterator[Generator]:
    """Where the job says; one that runs here has checked the requests."""
    if job.url:
        from phikit.engine.remote import RemoteGenerator

        yield RemoteGenerator(job.url, job.name, job.key, asker.tokenizer, in_flight=job.batch)
        return
    if job.ray:
        from phikit.engine.ray_pool import RayPool

        address = None if job.ray == "local" else job.ray
        pool = RayPool(job.model, job.engines, job.threads, job.batch, address)
        try:
            yield pool
        finally:
            pool.close()
        return
    from phikit.engine.load import open_engine
    from phikit.train.adapters import load as load_adapter

    engine = open_engine(
        job.model, job.batch, speculate=job.speculate, cache=job.kv_cache, invariant=job.invariant
    )
    weights: Any = engine.model
    for given in job.adapters:
        called, _, folder = given.partition("=")
        if not folder:
            raise PhikitError(f"--adapter {given!r} is not NAME=DIR")
        load_adapter(weights, Path(folder), called)
    for prompt, request in zip(prompts, requests, strict=True):
        with prompt.named():
            engine.check(request)
    yield engine


def check_place(
    url: str, ray: str, of_engines: Mapping[str, object], of_urls: Mapping[str, object]
) -> None:
    """Refuses options that would be ignored.

    Raises:
        PhikitError: there are two places to run, or an option is none of the place's.
    """
    if url and ray:
        raise PhikitError("--url and --ray are two places to run", "give one of them")
    given = [option for option, value in of_engines.items() if value] if url or ray else []
    if given:
        place = "an endpoint (--url)" if url else "engines on a Ray cluster (--ray)"
        raise PhikitError(f"{', '.join(given)}: not for {place}", "leave it out, or run it here")
    given = [] if url else [option for option, value in of_urls.items() if value]
    if given:
        raise PhikitError(f"{', '.join(given)}: only for an endpoint", "give --url as well")


def constraint(schema: Path | None, regex: str, grammar: Path | None) -> Constraint | None:
    """The form that was asked for.

    Raises:
        PhikitError: there are two, or its file cannot be read.
    """
    given = [(k, v) for k, v in (("json_schema", schema), ("grammar", grammar)) if v is not None]
    if len(given) + bool(regex) > 1:
        raise PhikitError("--schema, --regex and --grammar are three forms", "give one of them")
    if regex:
        return Constraint("regex", regex)
    if not given:
        return None
    kind, path = given[0]
    return Constraint(kind, read_text(path))
