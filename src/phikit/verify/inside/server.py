"""The sandbox's server: builds the prison, then forks one child per program.

Forking a process that has already started Python and imported the usual modules takes a
millisecond; starting one takes fifty. One program runs at a time; a sandbox that is to use several
cores starts several servers.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import secrets
import select
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from phikit.verify.inside import child
from phikit.verify.inside.prison import Prison
from phikit.verify.inside.wire import receive, send

PRELOADED = (
    "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq",
    "itertools", "math", "operator", "re", "statistics", "string", "typing",
)  # fmt: skip
LONGEST_REPORT = 4_000_000


def main(library: str) -> None:
    """Serves on the socket that is its standard input, until the other side is gone.

    The first message says {"ready": true, "isolation": ...} or {"failed": step, "error": text}.
    `library` is the folder that phikit was imported from; programs do not see it.
    """
    sock = socket.socket(fileno=0)
    prison = Prison()
    try:
        prison.build()
    except OSError as e:
        send(sock, {"failed": prison.step, "error": e.strerror or str(e)})
        return
    for name in PRELOADED:
        importlib.import_module(name)
    sys.path.remove(library)
    os.environ.clear()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)  # process 1 ignores what it does not handle
    gc.collect()
    gc.freeze()
    send(sock, {"ready": True, "isolation": "user, mount, pid, net, ipc and uts namespaces"})
    while (job := receive(sock)) is not None:
        outcome = serve(job, sock)
        if outcome is None:
            return
        clean = _wipe(Path("/tmp"))
        send(sock, {**outcome, "clean": clean})
        if not clean:
            return


def serve(job: dict[str, Any], sock: socket.socket) -> dict[str, Any] | None:
    """Runs one program; None if whoever asked is gone."""
    secret = secrets.token_hex(16)
    pipes = [os.pipe() for _ in range(3)]
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child.run(job, secret, *(write for _, write in pipes))
    for _, write in pipes:
        os.close(write)
    reads = [read for read, _ in pipes]
    limit = job["limits"]["output_bytes"]
    watch = _Watch(pid, reads, [limit, limit, LONGEST_REPORT], sock)
    try:
        in_time = watch.until(start + job["limits"]["wall_seconds"])
        seconds = time.monotonic() - start
        os.kill(pid, signal.SIGKILL)  # still a zombie at worst: the number is not reused
        _, status, usage = os.wait4(pid, 0)
        _kill_the_rest()
        watch.drain()
    finally:
        watch.close()
    if watch.deserted:
        return None
    stdout, stderr, reports = watch.data
    return {
        "stdout": stdout.decode(errors="replace"),
        "stderr": stderr.decode(errors="replace"),
        "cut": watch.cut[0] or watch.cut[1],
        "reports": _genuine(reports, secret),
        "in_time": in_time,
        "signal": os.WTERMSIG(status) if in_time and os.WIFSIGNALED(status) else 0,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "seconds": seconds,
    }


class _Watch:
    """Reads a child's pipes, keeping no more than a limit of each, until it ends."""

    def __init__(self, pid: int, fds: list[int], limits: list[int], sock: socket.socket) -> None:
        self.fds, self.limits, self.sock = fds, limits, sock
        self.data = [bytearray() for _ in fds]
        self.cut = [False for _ in fds]
        self.open = set(range(len(fds)))
        self.deserted = False
        self.pid_fd = os.pidfd_open(pid)
        self.poll = select.poll()
        for fd in (*fds, self.pid_fd, sock.fileno()):
            self.poll.register(fd, select.POLLIN)
        for fd in fds:
            os.set_blocking(fd, False)

    def until(self, deadline: float) -> bool:
        """True when the child ended before the deadline."""
        while (left := deadline - time.monotonic()) > 0:
            for fd, _ in self.poll.poll(left * 1000 + 1):
                if fd == self.pid_fd:
                    return True
                if fd == self.sock.fileno():
                    self.deserted = True  # nothing is sent while a program runs: it was closed
                    return False
                self._read(self.fds.index(fd))
        return False

    def drain(self) -> None:
        """Reads what is left in the pipes; every writer is dead, so this ends."""
        for index in range(len(self.fds)):
            while self._read(index):
                pass

    def _read(self, index: int) -> bool:
        try:
            piece = os.read(self.fds[index], 65536)
        except BlockingIOError:
            return False
        if not piece:
            if index in self.open:
                self.open.remove(index)
                self.poll.unregister(self.fds[index])
            return False
        room = self.limits[index] - len(self.data[index])
        self.cut[index] |= len(piece) > room
        self.data[index] += piece[: max(0, room)]
        return True

    def close(self) -> None:
        for fd in (*self.fds, self.pid_fd):
            os.close(fd)


def _kill_the_rest() -> None:
    """Kills every process in the pid namespace but this one, and waits for their end.

    The kernel signals all of them under one lock, so a fork bomb cannot run away from it.
    """
    try:
        os.kill(-1, signal.SIGKILL)
    except ProcessLookupError:
        return
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _genuine(data: bytearray, secret: str) -> list[dict[str, Any]]:
    """The reports that carry the secret, without it; anything else was not written by us."""
    reports = []
    for line in data.split(b"\n"):
        try:
            report = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(report, dict) and report.pop("secret", None) == secret:
            reports.append(report)
    return reports


def _wipe(directory: Path) -> bool:
    """Empties the programs' /tmp; False if a program left something that resists."""
    try:
        for path in list(directory.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except (OSError, RecursionError):
        return False
    return True
