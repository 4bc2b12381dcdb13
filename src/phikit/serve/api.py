"""The HTTP interface: OpenAI's paths, and what belongs to running a server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from phikit.errors import PhikitError, did_you_mean
from phikit.serve.generation import Generation
from phikit.serve.guard import Guard, error_body, in_a_line
from phikit.serve.metrics import Metrics
from phikit.serve.page import add_page
from phikit.serve.requests import Limits, engine_requests, prompts, refuse_unsupported
from phikit.serve.schema import (
    UNSUPPORTED,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ErrorBody,
    TokenizeBody,
)
from phikit.serve.served import Refused, Served
from phikit.serve.worker import Busy, Down

# the statuses of errors: a wrong request, no key, no such model, too slow, too large, too many, and
# that an engine is being started again
_STATUSES = (400, 401, 404, 408, 413, 429, 503)


class _Missing(PhikitError):
    """There is no model of that name."""


def _error(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> JSONResponse:
    clean = message.encode("utf-8", "replace").decode()  # a name in a body may hold half a pair
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(error_body(status, clean, param, code), status, headers)


def build(models: Sequence[Served], limits: Limits, keys: Sequence[str] = ()) -> Guard:
    """The application. Its engines start and stop with it."""
    served = {m.name: m for m in models}
    workers = list(dict.fromkeys(m.worker for m in models))  # a model and its adapters share one
    metrics = Metrics(workers)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for worker in workers:
            await worker.begin()
        yield
        await asyncio.gather(*(worker.stop() for worker in workers))

    app = FastAPI(
        title="phikit", version="1", lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={status: {"model": ErrorBody} for status in _STATUSES},
    )  # fmt: skip
    _errors(app)
    _about(app, served, metrics)
    _generation(app, served, limits)
    add_page(app)
    _publish(app)

    def count(path: str, status: int) -> None:
        metrics.answers.labels(path, str(status)).inc()

    return Guard(app, limits, keys, count)


def _publish(app: FastAPI) -> None:
    """The OpenAPI document says what is answered: 400 to a wrong body, not the framework's 422."""
    document = app.openapi()
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _model(served: Mapping[str, Served], name: str) -> Served:
    if name not in served:
        raise _Missing(f"there is no model {name!r}", did_you_mean(name, served))
    return served[name]


def _errors(app: FastAPI) -> None:
    """Every error is OpenAI's error object, with a status that says whose fault it is."""

    @app.exception_handler(PhikitError)
    async def phikit(_: Request, error: PhikitError) -> Response:
        if isinstance(error, Busy):
            return _error(429, in_a_line(error), code="queue_full")
        if isinstance(error, Down):
            return _error(503, in_a_line(error), code=error.code)
        if isinstance(error, _Missing):
            return _error(404, in_a_line(error), "model", "model_not_found")
        if isinstance(error, Refused):
            return _error(400, in_a_line(error), error.param, error.code)
        return _error(400, in_a_line(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first, where = _nearest(error)
        if instead := first["type"] == "extra_forbidden" and UNSUPPORTED.get(where):
            text = f"{where} is not supported by this server; {instead}"
            return _error(400, text, where, "unsupported_parameter")
        if first["type"] == "extra_forbidden":
            return _error(400, f"unknown parameter {where!r}", where, "unknown_parameter")
        if first["type"] == "json_invalid":
            return _error(400, f"the body is not valid JSON (at {where})")
        if not where:
            text = "the body must be a JSON object, sent with Content-Type: application/json"
            return _error(400, text, None, "invalid_type")
        what = first["msg"].removeprefix("Value error, ")
        return _error(400, f"{where}: {what}", where, _code(first["type"]))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        told = {
            404: f"there is no path {request.url.path!r}; /openapi.json lists those there are",
            405: f"the path {request.url.path!r} does not take {request.method}",
        }
        answer = _error(error.status_code, told.get(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer


def _code(kind: str) -> str:
    """OpenAI's word for one of the framework's kinds of complaint."""
    if kind == "missing":
        return "missing_required_parameter"
    return "invalid_type" if kind.endswith(("_type", "_from_float")) else "invalid_value"


def _nearest(error: RequestValidationError) -> tuple[dict[str, Any], str]:
    """What is wrong, and where. Where several forms are allowed, each has its own complaint: that
    of the one which fits furthest into the body is told, without the forms' names; of equals, one
    that the body is of the right type for."""
    found = []
    for one in error.errors():
        inside, place = error.body, list[str]()
        for part in one["loc"][1:]:
            try:
                inside = inside[part]
            except (KeyError, IndexError, TypeError):  # not in the body
                if part != one["loc"][-1] or one["type"] not in ("missing", "json_invalid"):
                    continue  # the name of a form
            place.append(str(part))
        found.append((one, place))
    one, place = max(found, key=lambda pair: (len(pair[1]), not pair[0]["type"].endswith("_type")))
    return one, ".".join(place)


def _about(app: FastAPI, served: Mapping[str, Served], metrics: Metrics) -> None:
    def card(model: Served) -> dict[str, Any]:
        return {
            "id": model.name, "object": "model", "created": 0, "owned_by": "phikit",
            "max_model_len": model.context,
            **({"parent": model.worker.name} if model.adapter else {}),
        }  # fmt: skip

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [card(m) for m in served.values()]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Any:
        return card(_model(served, name))

    @app.get("/healthz")
    async def healthz() -> Response:
        dead = [m.name for m in served.values() if not m.worker.alive]
        if dead:
            return JSONResponse({"status": "failed", "models": dead}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def figures() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Any:
        model = _model(served, body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Refused("prompt", "give either prompt or messages")
        if body.tools and body.messages is None:
            raise Refused("tools", "tools are written into messages, not into a prompt")
        if body.messages is not None:
            ids = model.conversation(body.messages, body.tools)
        else:
            ids = model.tokenizer.encode(body.prompt or "")
        return {"tokens": ids, "count": len(ids), "max_model_len": model.context}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> Any:
        model = _model(served, body.model)
        if wrong := [token for token in body.tokens if token >= model.vocab_size]:
            raise Refused(
                "tokens", f"token id {wrong[0]} is not in the vocabulary of {model.vocab_size}"
            )
        return {"prompt": model.tokenizer.decode(body.tokens)}


def _generation(app: FastAPI, served: Mapping[str, Served], limits: Limits) -> None:
    streams: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

    @app.post("/v1/chat/completions", responses=streams)
    async def chat(body: ChatBody, request: Request) -> Response:
        model = _model(served, body.model)
        refuse_unsupported(body)
        tools = body.tools if body.tool_choice != "none" else []
        ids = model.conversation(body.messages, tools)
        asked = engine_requests(model, body, [ids], limits)
        return await Generation(model, body, asked, limits, bool(tools)).respond(request)

    @app.post("/v1/completions", responses=streams)
    async def completions(body: CompletionBody, request: Request) -> Response:
        model = _model(served, body.model)
        refuse_unsupported(body)
        asked = engine_requests(model, body, prompts(model, body), limits)
        return await Generation(model, body, asked, limits, False).respond(request)
