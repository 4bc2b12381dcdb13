"""Reaching a Ray cluster, and what its errors mean."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Generic, Protocol, Self, TypeVar

from phikit.engine.base import Request, can_run, check
from phikit.errors import PhikitError, how_to_install


class Engine(Protocol):
    """`actor`: of Ray; `ready`: a reference to its process number, there once it can be asked."""

    actor: Any
    ready: Any


E = TypeVar("E", bound=Engine)


class Engines(Generic[E]):
    """What pools of engines on a cluster have in common.

    Attributes:
        engines: those that are wanted; one that dies is replaced in its place. None: closed.
        replaced: engines that died, so far.

    Raises:
        PhikitError: the extra is missing, or there is no cluster at `address`.
    """

    def __init__(self, address: str | None, patience: float) -> None:
        self._ray, self.patience = imported(), patience
        if not self._ray.is_initialized():
            connect(self._ray, address)
        self.engines: list[E] = []
        self.replaced = 0

    def pids(self) -> list[int]:
        """The engines' process numbers on their nodes, once all are ready."""
        found: list[int] = self._ray.get([e.ready for e in self.engines], timeout=self.patience)
        return found

    def close(self) -> None:
        """Ends the engines; the cluster stays."""
        for engine in self.engines:
            self._ray.kill(engine.actor)
        self.engines = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self.engines:
            raise PhikitError("this pool is closed", "make a new one")

    def _none_ready(self, what: str, fewer: str) -> PhikitError:
        have = self._ray.available_resources().get("CPU", 0)
        return PhikitError(
            f"no engine {what} after {self.patience:.0f} seconds; the cluster has {have:.0f} CPUs "
            "free",
            f"start more nodes, or ask for fewer {fewer}",
        )


def check_all(requests: Sequence[Request], config: Any, texts: bool = False) -> None:
    """
    Raises:
        PhikitError: an engine of the model cannot run one of them; says which.
    """
    for index, request in enumerate(requests):
        try:
            check(request, config.vocab_size, config.max_positions)
            can_run(request, texts)
        except PhikitError as error:
            raise PhikitError(f"request {index}: {error.message}", error.hint) from None


def imported() -> Any:
    """The module `ray`.

    Raises:
        PhikitError: the extra is missing.
    """
    try:
        import ray
    except ModuleNotFoundError as e:
        raise PhikitError("a pool of engines needs Ray", how_to_install("ray")) from e
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
