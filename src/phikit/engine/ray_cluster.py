"""Reaching a Ray cluster, and what its errors mean."""

from __future__ import annotations

import socket
from typing import Any

from phikit.errors import PhikitError


def imported() -> Any:
    """The module `ray`.

    Raises:
        PhikitError: the extra is missing.
    """
    try:
        import ray
    except ModuleNotFoundError as e:
        raise PhikitError("a pool of engines needs Ray", "pip install 'phikit[ray]'") from e
    return ray


def connect(ray: Any, address: str | None) -> None:
    """Joins a cluster; with no address one of this machine, which is started if need be.

    Raises:
        PhikitError: there is none at the address.
    """
    way = "start one: ray start --head, and on the other nodes ray start --address HOST:PORT"
    try:
        if address and ":" in address and "://" not in address:
            # Ray itself would try for minutes, and then end this process
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, include_dashboard=None if address else False,
                 log_to_driver=False)  # fmt: skip
    except (ConnectionError, OSError, RuntimeError, ValueError) as e:
        raise PhikitError(
            f"there is no Ray cluster at {address or 'this machine'}: {e}", way
        ) from e


def cause(error: Exception) -> str:
    """The inner error of one that Ray wraps, without its pages of advice."""
    inner = getattr(error, "cause", None) or error
    return getattr(inner, "message", "") or str(inner).strip().splitlines()[0]
