"""A helper process that answers JSON lines, for code that may take for ever or all the memory."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

SECONDS = 8.0  # for one reply
START_SECONDS = 60.0  # for its first, before which it imports what it needs


class DoesNotStart(RuntimeError):
    """The process gave no reply to its first request."""


class Worker:
    """Asks a script, and kills and replaces its process when it does not answer in time.

    Args:
        script: reads JSON lines from standard input and writes one JSON line for each.
        first: a request that makes it import what it needs.
    """

    def __init__(self, script: Path, first: Any) -> None:
        self.script, self._first = script, first
        self._hello: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def hello(self) -> Any:
        """The reply to the first request.

        Raises:
            DoesNotStart: there is none.
        """
        with self._lock:
            self._start()
            return self._hello

    def ask(self, request: Any, seconds: float = SECONDS) -> Any:
        """The reply; None if there is none in time, or the process died of the request."""
        with self._lock:
            self._start()
            line = self._line(request, seconds)
        return None if line is None else json.loads(line)

    def _start(self) -> None:
        """Starts a process unless one is there."""
        if self._process is not None and self._process.poll() is None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        line = self._line(self._first, START_SECONDS)
        if line is None:
            raise DoesNotStart(f"{self.script} does not start; run it by hand to see why")
        self._hello = json.loads(line)

    def _line(self, request: Any, seconds: float) -> bytes | None:
        """One line of reply; None, with the process killed, if there is none in time."""
        process = self._process
        assert process and process.stdin and process.stdout
        line = b""
        with suppress(BrokenPipeError):  # it has ended since
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], seconds)
            line = process.stdout.readline() if ready else b""
        if line:
            return line
        process.kill()
        process.wait()
        self._process = None
        return None
