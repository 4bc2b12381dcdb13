"""Starting a server, and ending it: on SIGTERM requests in flight are finished first."""

from __future__ import annotations

import ctypes
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from phikit.errors import PhikitError
from phikit.serve.requests import Limits, Served

Say = Callable[[str], None]

# Seconds after which Python's threads must let another one run. The engine's thread lets go of the
# interpreter in each of a step's hundreds of operations and may have to wait for the HTTP side's:
# the shorter, the better for it. Not measured by itself.
_SWITCH = 1e-4

# glibc's mallopt: (which setting, value). In a thread of its own the engine made 288 and 256
# tokens/s where in the main thread it made 373 and 398 (SmolLM2, 32 rows); with one arena 375 and
# 344 against 414 and 451. The thresholds, which keep freed memory, were not measured apart.
_MALLOC = ((-8, 1), (-3, 32 * 2**20), (-1, 2**30))  # one arena; mmap and trim thresholds


def serve(
    models: Mapping[str, Path],
    host: str,
    port: int,
    limits: Limits,
    keys: Sequence[str],
    rows: int,
    cache_bytes: int | None,
    say: Say,
) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        models: name → directory or GGUF file.
        port: 0 takes a free one; `say` tells which.
        rows: samples generated at once, per model.
        cache_bytes: of every model's KV cache; together half of the free memory when None.

    Raises:
        PhikitError: the extra is missing, a model cannot be loaded, or the port is taken.
    """
    try:
        import uvicorn

        from phikit.serve import api
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("phikit"):
            raise
        raise PhikitError(f"the server needs {e.name}", "pip install 'phikit[serve]'") from e
    _keep_memory()
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as e:
        raise PhikitError(
            f"cannot listen on {host}:{port}: {e.strerror or e}", "give another --port"
        ) from e
    served: list[Served] = []
    for name, directory in models.items():
        share = 1 / (len(models) - len(served))
        served.append(Served.load(name, directory, rows, cache_bytes, share, limits.open))
        stats = served[-1].worker.stats
        mib = stats.blocks * served[-1].worker.scheduler.runner.block_bytes / 2**20
        say(f"{name}: {stats.blocks} blocks of {stats.block_size} positions, {mib:.0f} MiB")
    sock.listen(2048)  # from here on clients wait instead of being refused
    sys.setswitchinterval(_SWITCH)
    config = uvicorn.Config(
        api.build(served, limits, keys),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=int(limits.drain),
        timeout_keep_alive=30,
        backlog=2048,
    )
    say(f"listening on http://{host}:{sock.getsockname()[1]} ({torch.get_num_threads()} threads)")
    uvicorn.Server(config).run(sockets=[sock])


def _keep_memory() -> None:
    """Has the C library keep large blocks for the next step; nothing where it is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for setting, value in _MALLOC:
            mallopt(setting, value)
