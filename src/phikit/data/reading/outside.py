"""Readers that run in a process of their own, because what they read can crash or hang them.

The process has limits of time and memory, so a file that is made to break its reader costs that
file alone.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Sequence

from phikit.data.reading.base import BrokenFile, ReaderConfig

_SAID = 300  # characters of what a program said when it failed that are told on
MEMORY = 4 << 30  # address space of the process, in bytes


def run(
    command: Sequence[str],
    settings: ReaderConfig,
    what: str,
    address_space: int | None = MEMORY,
    given: str = "",
) -> str:
    """What a program prints.

    Args:
        what: the program's name, for the reason.
        address_space: its limit in bytes; None for a program that bounds its memory itself.
        given: what it reads from its standard input.

    Raises:
        BrokenFile: it failed, crashed, printed no text, or took too long or too much memory.
    """
    seconds = settings.seconds_per_file
    try:
        done = subprocess.run(
            command,
            input=given.encode(),
            capture_output=True,
            timeout=seconds,
            preexec_fn=lambda: _limit(address_space),
        )
    except subprocess.TimeoutExpired as e:
        raise BrokenFile("takes too long", f"{what}: more than {seconds:g} s") from e
    if done.returncode:
        said = " ".join(done.stderr.decode("utf-8", "replace")[-_SAID:].split())
        reason = f"{what} crashed" if done.returncode < 0 else f"{what} cannot read it"
        raise BrokenFile(reason, said or f"status {done.returncode}")
    if len(done.stdout) > settings.max_file_bytes:
        raise BrokenFile("file too large", f"{len(done.stdout)} bytes of text")
    text = done.stdout.decode("utf-8")
    if not text.strip():
        raise BrokenFile("no text", what)
    return text


def _limit(address_space: int | None) -> None:
    """In the child: no core files, and an address space that has an end."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if address_space is not None:
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
