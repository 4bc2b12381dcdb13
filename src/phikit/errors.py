"""The one error type that a user is meant to read.

Every failure that the user can do something about (a wrong key, a missing file, a full disk, a
corrupt checkpoint) is raised as `PhikitError`. The command line prints it as plain text, without a
traceback, and exits with status 2. Anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

_LONG = 20  # more names than so many nobody reads in an error
_FEW = 5  # so many of them are shown then


class PhikitError(Exception):
    """What was wrong and where (`message`), and what to do about it (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.hint}" if self.hint else self.message


class BadRecord(PhikitError):
    """One record is at fault (its gold answer, its tests, what a teacher wrote into it), and no
    setting: whoever goes through many may set it aside and go on."""


def did_you_mean(word: str, known: Iterable[str], listed_by: str = "") -> str:
    """Names the known word nearest to `word`, as the end of an error's hint.

    When none is near it names them all; of a long list that the command `listed_by` prints, the
    few that are nearest and that command.
    """
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"did you mean {near[0]!r}?"
    if not listed_by or len(known) <= _LONG:
        return "known: " + ", ".join(known)
    nearest = difflib.get_close_matches(word, known, n=_FEW, cutoff=0.2)
    shown = f"; the nearest: {', '.join(nearest)}" if nearest else ""
    return f"`{listed_by}` lists all {len(known)}{shown}"


def how_to_install(extra: str) -> str:
    """The command that installs one of phikit's extras, as an error's hint.

    phikit is on no package index, so in a clone the command names the clone; elsewhere pip finds
    the copy that is installed, and adds the extra's packages to it.
    """
    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file():
        return "pip install -e " + shlex.quote(f"{clone}[{extra}]")
    return f"pip install 'phikit[{extra}]'"
