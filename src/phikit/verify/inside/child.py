"""One program's own process: sets its limits, runs it and its checks, reports, ends.

A check is one of
- ["value", expression]: its value is reported as text (`values.key_of`) and compared by whoever
  asked, in another process. The expected value is never in this process, so a program cannot pass
  by leaving early, by objects that equal everything, by changing Python's functions, or by reading
  this process's memory: it has to know the value.
- ["statement", source]: passes if it raises nothing. It is reported together with a secret made for
  this one program, so a program cannot pass by leaving early or by writing to every file it finds
  open. (Code that searches the frames of its own process for the secret could still find it: where
  that matters, write the check as a value.)
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import sys
import threading
import traceback
from typing import Any, NoReturn

from phikit.verify.inside.values import key_of

LONGEST_SHOWN = 200
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def run(
    job: dict[str, Any], secret: str, stdout_fd: int, stderr_fd: int, report_fd: int
) -> NoReturn:
    """Runs the program of `job` and ends the process. Reports are JSON lines on `report_fd`."""
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.dup2(stdout_fd, 1)
    os.dup2(stderr_fd, 2)
    report_fd = os.dup2(report_fd, 3)
    os.closerange(4, 256)
    _limit(job["limits"])
    random.seed(0)

    def report(**fields: Any) -> None:
        os.write(report_fd, (json.dumps({"secret": secret, **fields}) + "\n").encode())

    checks = job["checks"]
    names = {"__name__": "candidate" if checks else "__main__", "__builtins__": __builtins__}
    try:
        exec(compile(job["source"], "<program>", "exec"), names)
        if not checks:
            _join_threads()
        _flush()
        report(event="ran")
    except BaseException as e:
        _flush()
        report(event="raised", error=_describe(e), exit=isinstance(e, SystemExit))
        os._exit(0)
    for number, (kind, source) in enumerate(checks):
        report(event="check", number=number, **_check(kind, source, names))
    _flush()
    report(event="end")
    os._exit(0)


def _check(kind: str, source: str, names: dict[str, Any]) -> dict[str, Any]:
    try:
        if kind == "value":
            value = eval(compile(source, "<check>", "eval"), names)
            return {"key": key_of(value), "shown": _short(value)}
        exec(compile(source, "<check>", "exec"), names)
    except BaseException as e:
        return {"error": _describe(e)}
    return {"passed": True}


def _limit(limits: dict[str, Any]) -> None:
    cpu, memory = limits["cpu_seconds"], limits["memory_mb"] << 20
    processes = limits["processes"] + 2  # the server and its own parent count as the same user
    # At the first limit comes SIGXCPU, which says why; whoever ignores it is killed at the second.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, limits["file_mb"] << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(what, (most, most))


def _join_threads() -> None:
    """What Python does at its end: waits for threads that are no daemons."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # The program may have closed or replaced it: then there is nothing left to flush.
        with contextlib.suppress(Exception):
            stream.flush()


def _short(value: object) -> str:
    try:
        text = repr(value)
    except BaseException as e:
        return f"<{type(value).__name__} whose repr fails: {_describe(e)}>"
    return _stable(text)


def _stable(text: str) -> str:
    """Cut to a length, and without addresses, which differ from run to run."""
    text = _ADDRESS.sub("", text[: 4 * LONGEST_SHOWN])
    return text if len(text) <= LONGEST_SHOWN else text[:LONGEST_SHOWN] + "…"


def _describe(error: BaseException) -> str:
    """ "ZeroDivisionError: division by zero (line 3)"; the line is the program's own."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f.lineno for f in frames if f.filename == "<program>"]
    if isinstance(error, SyntaxError) and error.filename == "<program>":
        lines, text = [error.lineno], error.msg
    else:
        text = str(error)
    where = f" (line {lines[-1]})" if lines else ""
    name = type(error).__name__
    return f"{name}: {_stable(text)}{where}" if text else name + where
