"""Units of work: each makes one folder, whole or not at all, and may be done by any process.

A unit names a function by its address, the folder it makes, and its arguments, all plain values.
One whose folder is there is done. Whoever does the others (processes of this machine here, a Ray
cluster in `ray_units`), and however often they are killed, the folders come out the same, because
a unit's function reads only what earlier units made, and writes only into its own folder.
"""

from __future__ import annotations

import concurrent.futures as futures
import ctypes
import importlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from phikit.errors import PhikitError
from phikit.files import atomic_directory

ATTEMPTS = 3  # how often a unit may take its process down with it
_DEATH_SIGNAL = 1  # of prctl(2): the signal to get when the parent dies
Result = tuple[str, str]  # of a unit: message and hint of an error, both empty if there was none


@dataclass(frozen=True)
class Unit:
    """`function` is "module:name"; it gets the folder to fill and then the arguments by name."""

    function: str
    folder: Path
    arguments: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether its folder is there, which comes to be only when it is whole."""
        return self.folder.exists()


class Workers(Protocol):
    """Whoever does units."""

    def run(self, units: Sequence[Unit], progress: Callable[[int, int], None]) -> None:
        """Does all that are not done.

        Raises:
            PhikitError: one failed, or took down its process time and again; the others that were
                done stay done.
        """

    def close(self) -> None:
        """Gives back what the workers hold."""


def do(function: str, folder: str, arguments: Mapping[str, Any]) -> Result:
    """Does one unit, in whatever process this is; returns the error that a user can put right."""
    module, _, name = function.partition(":")
    work = getattr(importlib.import_module(module), name)
    path = Path(folder)
    _note(path, "started")
    try:
        with atomic_directory(path) as temporary:
            work(temporary, **arguments)
    except PhikitError as e:
        return e.message, e.hint
    _note(path, "done")
    return "", ""


def _note(folder: Path, event: str) -> None:
    """A line in the account of who did what; lines of many processes do not tear."""
    line = {"event": event, "unit": f"{folder.parent.name}/{folder.name}", "pid": os.getpid()}
    with (folder.parent.parent / "units.jsonl").open("a") as account:
        account.write(json.dumps(line) + "\n")


class Here:
    """Does units one after the other in this process."""

    def run(self, units: Sequence[Unit], progress: Callable[[int, int], None]) -> None:
        waiting = [unit for unit in units if not unit.done]
        for number, unit in enumerate(waiting):
            progress(len(units) - len(waiting) + number, len(units))
            raise_error(do(unit.function, str(unit.folder), unit.arguments))

    def close(self) -> None:
        return


class Processes:
    """Does units in processes of this machine; one that dies has its unit done again."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: futures.ProcessPoolExecutor | None = None

    def run(self, units: Sequence[Unit], progress: Callable[[int, int], None]) -> None:
        attempts: dict[Path, int] = {}
        while waiting := [unit for unit in units if not unit.done]:
            progress(len(units) - len(waiting), len(units))
            try:
                for _ in self._round(waiting, attempts):
                    progress(sum(unit.done for unit in units), len(units))
            except BrokenProcessPool:
                self.close()
                worst = max(attempts, key=lambda folder: attempts[folder])
                if attempts[worst] >= ATTEMPTS:
                    raise PhikitError(
                        f"{worst}: the process doing this was killed {ATTEMPTS} times",
                        "is memory short? Fewer workers or smaller shard_bytes need less",
                    ) from None

    def _round(self, units: Sequence[Unit], attempts: dict[Path, int]) -> Iterator[None]:
        """Does units until all are done or a process dies; counts those that were begun.

        No more are handed out than there are processes, so that a dead one costs no other's count.
        """
        if self._pool is None:
            self._pool = futures.ProcessPoolExecutor(
                self.count, multiprocessing.get_context("spawn"), _begin, (os.getpid(), sys.path)
            )
        running: set[futures.Future[Result]] = set()
        left = list(reversed(units))
        try:
            while left or running:
                while left and len(running) < self.count:
                    unit = left.pop()
                    attempts[unit.folder] = attempts.get(unit.folder, 0) + 1
                    running.add(
                        self._pool.submit(do, unit.function, str(unit.folder), dict(unit.arguments))
                    )
                finished, running = futures.wait(running, return_when=futures.FIRST_COMPLETED)
                for job in finished:
                    raise_error(job.result())
                    yield
        finally:
            futures.wait(running)

    def close(self) -> None:
        """Ends the processes; `run` starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def raise_error(result: Result) -> None:
    """Raises what a unit reported."""
    if result[0]:
        raise PhikitError(*result)


def _begin(parent: int, path: list[str]) -> None:
    """In a new process: die with the one that started it, so that none is left to write on."""
    sys.path[:] = path
    ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends
    if os.getppid() != parent:
        os._exit(1)
