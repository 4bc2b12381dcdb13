"""The process that runs a user's verifiers: a script for `phikit.verify.own`, which may kill it.

The first JSON line it reads is a `Source`; it answers {"verifiers": {name: seconds}, "file": path}.
Every other one is {"name", "problem", "text"}; it answers {"passed", "score", "reason"}. Where the
user's code fails, the answer is {"error", "hint"}, the error beginning with file and line.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

MEMORY = 4 << 30
SECONDS = 8.0  # for one answer, unless the verifier has an attribute `seconds`
_LONGEST_REASON = 500


class Mistake(Exception):
    """What is wrong with the user's code, and what to do."""


class Verifiers:
    """What a source registers, made once."""

    def __init__(self, source: Mapping[str, Any]) -> None:
        self.shown, self.file = source["shown"], ""
        self.made: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.failure: dict[str, str] = {}
        try:
            self._load(source)
        except BaseException as e:  # a file may also call sys.exit
            self.failure = self._explain(e)

    def hello(self) -> dict[str, Any]:
        return self.failure or {"verifiers": self.seconds, "file": self.file}

    def reply(self, request: Mapping[str, Any]) -> dict[str, Any]:
        from phikit.verify.base import Problem

        if self.failure:
            return self.failure
        name = request["name"]
        try:
            item = (Problem(**request["problem"]), request["text"])
            signal.alarm(math.ceil(self.seconds[name]) + 5)  # if nobody is there to kill it
            return _verdict(self.made[name].verify([item]))
        except Exception as e:
            return self._explain(e)
        finally:
            signal.alarm(0)

    def _load(self, source: Mapping[str, Any]) -> None:
        from phikit.verify.base import VERIFIERS

        known = set(VERIFIERS)
        if source["kind"] == "file":
            self._run_file(source["place"], source["code"])
        elif source["kind"] == "module":
            self._import(source["place"])
        else:
            module, _, attribute = source["place"].partition(":")
            made: Any = self._import(module)
            for part in attribute.split("."):
                made = getattr(made, part)
            VERIFIERS[source["shown"]] = made
        for name in sorted(VERIFIERS.keys() - known):
            self._make(name, VERIFIERS[name])

    def _run_file(self, path: str, code: str) -> None:
        self.file = path
        sys.path.append(str(Path(path).parent))  # for what stands beside it
        module = ModuleType(f"own_{Path(path).stem}")
        module.__file__ = path
        sys.modules[module.__name__] = module
        exec(compile(code, path, "exec"), module.__dict__)

    def _import(self, name: str) -> Any:
        from importlib import import_module, util

        try:
            spec = util.find_spec(name)
        except ModuleNotFoundError as e:
            if not f"{name}.".startswith(f"{e.name}."):
                raise  # a package above it needs something else
            spec = None
        if spec is None or spec.origin is None:
            raise Mistake(f"there is no module {name!r} to import",
                          "install it, or name its file: FILE.py:NAME")  # fmt: skip
        self.file = self.shown = spec.origin
        return import_module(name)

    def _make(self, name: str, make: Any) -> None:
        made = make() if callable(make) else make
        if not callable(getattr(made, "verify", None)):
            raise Mistake(
                f"{self.shown}: what is registered as {name!r}, a {type(made).__name__}, has no "
                "method verify", "it takes a list of (problem, answer) and returns their verdicts"
            )  # fmt: skip
        self.made[name] = made
        self.seconds[name] = float(getattr(made, "seconds", SECONDS))

    def _explain(self, error: BaseException) -> dict[str, str]:
        """An error as a user reads it: the line of their file where it arose, and what it is."""
        from phikit.errors import PhikitError

        if isinstance(error, Mistake):
            return {"error": error.args[0], "hint": error.args[1]}
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self.file]
        line = lines[-1] if lines else None
        if isinstance(error, SyntaxError) and error.filename == self.file:
            line = error.lineno
        hint = "put it right there"
        if isinstance(error, PhikitError):
            said, hint = error.message, error.hint
        else:
            said = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
        return {"error": f"{self.shown}:{line}: {said}" if line else f"{self.shown}: {said}",
                "hint": hint}  # fmt: skip


def _verdict(found: Any) -> dict[str, Any]:
    from phikit.records import Verdict

    if not isinstance(found, list | tuple) or len(found) != 1 or not isinstance(found[0], Verdict):
        raise TypeError(f"verify gave {found!r:.80}, not a list with a Verdict for each answer")
    [one] = found
    if not math.isfinite(one.score):
        raise ValueError(f"the verdict's score is {one.score}, which is no number")
    return {
        "passed": bool(one.passed),
        "score": float(one.score),
        "reason": str(one.reason)[:_LONGEST_REASON],
    }


def serve(lines: TextIO, out: TextIO) -> None:
    first = json.loads(next(lines))
    sys.path[:] = first["path"]  # what the run can import, this can
    verifiers = Verifiers(first)
    out.write(json.dumps(verifiers.hello()) + "\n")
    out.flush()
    for line in lines:
        out.write(json.dumps(verifiers.reply(json.loads(line))) + "\n")
        out.flush()


def _apart() -> tuple[TextIO, TextIO]:
    """Requests and replies, out of reach of what the user's code reads and prints."""
    lines, out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return lines, out


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    serve(*_apart())
