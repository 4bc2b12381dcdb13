"""Starting a server, and ending it: on SIGTERM requests in flight are finished first."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from phikit.chat.load import load_tokenizer
from phikit.errors import PhikitError, how_to_install
from phikit.serve.requests import Limits
from phikit.serve.served import Served
from phikit.serve.worker import Settings, Worker

Say = Callable[[str], None]

_LAST_WORDS = 5  # seconds to tell clients that the time for their requests is over


def serve(
    models: Mapping[str, Path],
    host: str,
    port: int,
    limits: Limits,
    keys: Sequence[str],
    settings: Settings,
    say: Say,
    adapters: Mapping[str, Mapping[str, Path]],
) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        models: name → directory or GGUF file.
        adapters: of some models: name → directory of a LoRA adapter.
        port: 0 takes a free one; `say` tells which.
        settings: of every model's engine; without `cache_bytes` the caches together take half of
            the free memory.

    Raises:
        PhikitError: the extra is missing, a model cannot be loaded, or the port is taken.
    """
    try:
        import uvicorn

        from phikit.serve import api
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("phikit"):
            raise
        raise PhikitError(f"the server needs {e.name}", how_to_install("serve")) from e
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as e:
        raise PhikitError(
            f"cannot listen on {host}:{port}: {e.strerror or e}", "give another --port"
        ) from e
    workers: list[Worker] = []
    try:
        for name, directory in models.items():  # they load side by side
            mine = replace(settings, share=1 / len(models), adapters=adapters.get(name, {}))
            workers.append(Worker(name, directory, mine, limits.open))
        served: list[Served] = []
        for worker, directory in zip(workers, models.values(), strict=True):
            tokenizer = load_tokenizer(directory)
            worker.wait()
            for adapter in ("", *adapters.get(worker.name, ())):
                served.append(Served(adapter or worker.name, tokenizer, worker, adapter))
            blocks, size = worker.stats["blocks"], worker.stats["block_size"]
            mib = blocks * worker.about["block_bytes"] / 2**20
            say(f"{worker.name}: {blocks} blocks of {size} positions, {mib:.0f} MiB")
        sock.listen(2048)  # from here on clients wait instead of being refused
        config = uvicorn.Config(
            api.build(served, limits, keys),
            log_level="warning",
            lifespan="on",
            timeout_graceful_shutdown=int(limits.drain) + _LAST_WORDS,
            timeout_keep_alive=30,
            backlog=2048,
        )
        say(f"listening on http://{host}:{sock.getsockname()[1]}")
        _server(config, workers, limits.drain).run(sockets=[sock])
    finally:
        for worker in workers:
            worker.abandon()


def _server(config: Any, workers: Sequence[Worker], drain: float) -> Any:
    """A server which tells clients why, when their requests are not finished after `drain` seconds
    of shutting down."""
    import uvicorn

    class Draining(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            for worker in workers:
                asyncio.get_running_loop().call_later(drain, worker.give_up)
            await super().shutdown(sockets)

    return Draining(config)
