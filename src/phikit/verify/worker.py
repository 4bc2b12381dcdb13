"""A helper process that answers JSON lines, for code that may take for ever or all the memory."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

SECONDS = 8.0  # for one reply
START_SECONDS = 60.0  # for its first, before which it imports what it needs


class Worker:
    """Asks a script, and kills and replaces its process when it does not answer in time.

    Args:
        script: reads JSON lines from standard input and writes one JSON line for each.
        first: a request that makes it import what it needs.
    """

    def __init__(self, script: Path, first: Any) -> None:
        self.script, self._first = script, first
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, request: Any) -> Any:
        """The reply; None if there is none in time, or the process died of the request."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            line = self._line(request, SECONDS)
        return None if line is None else json.loads(line)

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._line(self._first, START_SECONDS) is None:
            raise RuntimeError(f"{self.script} does not start; run it by hand to see why")

    def _line(self, request: Any, seconds: float) -> bytes | None:
        """One line of reply; None, with the process killed, if there is none in time."""
        process = self._process
        assert process and process.stdin and process.stdout
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
