"""The durable record of a search: one file per round, every sampled token in it.

A round is written only when it is complete, and the search is a function of its rounds. So a
search that was killed reads them back and goes on, having lost at most the round it was drawing.
Only one round is in memory at a time.
"""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from phikit.errors import PhikitError
from phikit.files import explain_os_errors, write_atomic
from phikit.pivots.question import Drawn


class Round(NamedTuple):
    """The rollouts of each request of a round, and how many verdicts had to be computed."""

    rollouts: list[list[Drawn]]
    verified: int


class RoundLog:
    """Round files in a directory: `000000.round`, `000001.round`, ...

    A file is zlib-compressed: a JSON line with the digest of the requests and the counts, then
    lengths, lengths of the raw log-probabilities (the same or 0; both int32), verdicts (uint8),
    ids (int32), log-probabilities (float32) and raw ones.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, number: int, digest: str, done: Round) -> None:
        """Appends a finished round; when this returns it is on the disk."""
        flat = [d for group in done.rollouts for d in group]
        head = {
            "digest": digest,
            "groups": [len(group) for group in done.rollouts],
            "verified": done.verified,
        }
        parts = [
            json.dumps(head).encode() + b"\n",
            np.array([len(d.ids) for d in flat], "<i4").tobytes(),
            np.array([len(d.raw_logprobs) for d in flat], "<i4").tobytes(),
            np.array([d.passed for d in flat], "u1").tobytes(),
            np.array([i for d in flat for i in d.ids], "<i4").tobytes(),
            np.array([x for d in flat for x in d.logprobs], "<f4").tobytes(),
            np.array([x for d in flat for x in d.raw_logprobs], "<f4").tobytes(),
        ]
        write_atomic(self._file(number), zlib.compress(b"".join(parts), 1))

    def read(self, number: int, digest: str) -> Round | None:
        """The round, or None when it has not been drawn.

        Raises:
            PhikitError: the file is corrupt, or records other requests than these.
        """
        file = self._file(number)
        if not file.exists():
            return None
        with explain_os_errors(file, "reading"):
            data = file.read_bytes()
        try:
            line, _, body = zlib.decompress(data).partition(b"\n")
            head = json.loads(line)
            rollouts = _unpack(body, head["groups"])
        except (zlib.error, ValueError, KeyError) as e:
            raise PhikitError(
                f"{file}: not a readable round of a search ({e})",
                "delete this file and those after it: their rollouts will be drawn again",
            ) from e
        if head["digest"] != digest:
            raise PhikitError(
                f"{file}: this round was drawn for other settings, problems or weights",
                f"give the search another folder, or delete {self.directory}",
            )
        return Round(rollouts, head["verified"])

    def _file(self, number: int) -> Path:
        return self.directory / f"{number:06d}.round"


def _unpack(body: bytes, groups: Sequence[int]) -> list[list[Drawn]]:
    count = sum(groups)
    lengths = np.frombuffer(body, "<i4", count)
    raw_lengths = np.frombuffer(body, "<i4", count, offset=4 * count)
    passed = np.frombuffer(body, "u1", count, offset=8 * count)
    total, at = int(lengths.sum()), 9 * count
    ids = _cut(np.frombuffer(body, "<i4", total, offset=at), lengths)
    logprobs = _cut(np.frombuffer(body, "<f4", total, offset=at + 4 * total), lengths)
    raw_total = int(raw_lengths.sum())
    raw = _cut(np.frombuffer(body, "<f4", raw_total, offset=at + 8 * total), raw_lengths)
    rows = zip(ids, logprobs, raw, passed.tolist(), strict=True)
    flat = [Drawn(i, x, r, bool(p)) for i, x, r, p in rows]
    firsts = np.cumsum([0, *groups]).tolist()
    return [flat[a:b] for a, b in itertools.pairwise(firsts)]


def _cut(values: NDArray[Any], lengths: NDArray[np.int32]) -> list[tuple[Any, ...]]:
    bounds = np.cumsum([0, *lengths]).tolist()
    flat = values.tolist()
    return [tuple(flat[a:b]) for a, b in itertools.pairwise(bounds)]
