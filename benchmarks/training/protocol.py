"""How the benchmark talks to a trainer in a process of its own: a word in, a line of JSON out.

A job is a JSON file; a trainer reads it, gets ready, and then takes one optimiser step whenever it
reads "step". Every contender is a process because its peak memory is that of a process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_SELF = Path("/proc/self")


def job() -> dict[str, Any]:
    return json.loads(Path(sys.argv[1]).read_text())


def say(**what: Any) -> None:
    print("@" + json.dumps(what), file=sys.__stdout__, flush=True)


def wait() -> None:
    """Until the benchmark asks for a step; ends the process when it asks for no more."""
    if sys.stdin.readline().strip() != "step":
        say(peak=peak_bytes())
        os._exit(0)  # trainers keep threads of their own


class Clock:
    """Reports each step: `start` waits for leave, `done` says what it took.

    By the clock, and in processor time of all threads: on a machine with others at work the clock
    says as much of them.
    """

    def __init__(self) -> None:
        say(ready=True)
        self.began = self.worked = 0.0

    def start(self) -> None:
        wait()
        self.began, self.worked = time.perf_counter(), time.process_time()

    def done(self, loss: float, tokens: int) -> None:
        say(
            seconds=time.perf_counter() - self.began, work=time.process_time() - self.worked,
            loss=loss, tokens=tokens,
        )  # fmt: skip


def peak_bytes() -> int:
    for line in (_SELF / "status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
