"""Verifiers of one's own: named by their file or module, or offered by an installed package.

    checks.py:polite             what the file registers as "polite"
    acme.checks:polite           what an importable module registers as "polite"
    polite                       of a package with an entry point "polite" in "phikit.verifiers"

Only what a user wrote on the command line or in a recipe is loaded by file or module. From then on
the verifier is known in this process by its name, which is what problems state.

Its code runs in a process of its own (`own_worker.py`) that may be killed: an answer on which it
takes too long, or dies, has failed. A verifier that raises an exception is a mistake to be put
right, not a wrong answer: it stops the run.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator

from phikit.errors import PhikitError, did_you_mean
from phikit.files import fingerprint, read_text
from phikit.records import Verdict
from phikit.verify.base import BUILT_IN, VERIFIERS, Problem, check_name, entry_points
from phikit.verify.verdicts import shorten, verdict
from phikit.verify.worker import START_SECONDS, DoesNotStart, Worker


@dataclass(frozen=True)
class Source:
    """Where verifiers come from.

    Attributes:
        shown: the file as it was written, the module, or the entry point's name.
        place: the file's absolute path, the module, or the entry point's "module:object".
        path: `sys.path`, where it is imported from.
        code: the text of a file, which is run as it was when it was read.
    """

    kind: Literal["file", "module", "entry"]
    shown: str
    place: str
    path: tuple[str, ...]
    code: str = ""


@dataclass
class OwnVerifier:
    """A user's verifier, asked about one answer after the other in its own process.

    Attributes:
        file: what its code stands in, as the worker found it.
        seconds: for one answer.
    """

    name: str
    source: Source
    file: str
    seconds: float

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """
        Raises:
            PhikitError: the verifier raises an exception or gives no verdict; names the line.
        """
        return [self._one(problem, text) for problem, text in items]

    def _one(self, problem: Problem, text: str) -> Verdict:
        try:
            reply = _worker(os.getpid(), self.source).ask(
                {"name": self.name, "problem": asdict(problem), "text": text}, self.seconds
            )
        except DoesNotStart as e:
            raise PhikitError(
                f"the verifier {self.name!r}: its process does not start again",
                f"see what {self.source.shown} does when it is loaded",
            ) from e
        if reply is None:
            reason = f"the verifier took more than {self.seconds:g} s, or its process ended"
            return verdict(self.name, False, reason)
        if "error" in reply:
            raise PhikitError(
                f"the verifier {self.name!r} fails on the answer {shorten(text)}: {reply['error']}",
                "a verifier gives every answer a verdict: put this right, and run it again",
            )
        return verdict(self.name, reply["passed"], reply["reason"], reply["score"])


def load(spec: str) -> str:
    """Makes a verifier known that a user named, and returns the name that it is known by.

    Args:
        spec: FILE.py:NAME, package.module:NAME, or the name of a known or installed one.

    Raises:
        PhikitError: there is none, its code fails (names file and line), it is no verifier, or its
            name is taken.
    """
    place, colon, name = spec.rpartition(":")
    if not colon:
        load_installed(spec)
        return spec
    source = _source(place, spec)
    if name in BUILT_IN:
        raise PhikitError(
            f"loading {spec!r}: {name!r} is the name of a built-in verifier",
            f"write {name} for that one, or register yours under another name",
        )
    found = _loaded(source, spec)
    if name not in found:
        hint = f'put @register("{name}") above its class, from phikit.verify.base import register'
        if found:
            hint = did_you_mean(name, found)
        raise PhikitError(f"loading {spec!r}: {source.shown} registers no verifier {name!r}", hint)
    _register(found, spec)
    return name


def load_all(specs: Iterable[str]) -> None:
    """`load` for each."""
    for spec in specs:
        load(spec)


def load_installed(name: str) -> None:
    """Makes the verifier of an installed package known, unless one of that name is.

    Raises:
        PhikitError: there is none, or its code fails.
    """
    check_name(name)
    path = tuple(sys.path)
    offered = entry_points(path).get(name)
    if offered and name not in VERIFIERS:
        _register(_loaded(Source("entry", name, offered[1], path), name), name)


def short(spec: str) -> str:
    """The name that a verifier is known by once it is loaded: without its file or module."""
    return spec.rpartition(":")[2]


def files(specs: Iterable[str]) -> list[str]:
    """The files that verifiers' code stands in, for `Stage.reads`; none for built-in ones."""
    found: list[str] = []
    for spec in filter(None, specs):
        name = load(spec)
        made = VERIFIERS[name]() if name in VERIFIERS else None
        if isinstance(made, OwnVerifier):
            found.append(made.file)
    return found


def marks(specs: Iterable[str]) -> dict[str, str]:
    """Each verifier as it was named → what changes when its file does."""
    return {spec: "".join(fingerprint(Path(file)) for file in files([spec])) for spec in specs}


def _checked(spec: str) -> str:
    try:
        load(spec)
    except PhikitError as e:
        raise ValueError(f"{e.message}; {e.hint}" if e.hint else e.message) from e
    return spec


VerifierName = Annotated[str, AfterValidator(_checked)]
"""A setting: a verifier that is loaded when the settings are read. `short` gives its name."""


def _source(place: str, spec: str) -> Source:
    if not (place.endswith(".py") or "/" in place):
        if not all(part.isidentifier() for part in place.split(".")):
            raise PhikitError(
                f"{spec!r} names no verifier",
                "write FILE.py:NAME, package.module:NAME, or a name alone",
            )
        return Source("module", place, place, tuple(sys.path))
    path = Path(place)
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else "the path is taken from this folder"
        raise PhikitError(f"loading {spec!r}: there is no file {place}", hint)
    return Source("file", place, str(path.resolve()), tuple(sys.path), read_text(path))


def _loaded(source: Source, spec: str) -> dict[str, OwnVerifier]:
    """What a source registers, by name, as its process tells it."""
    try:
        hello = _worker(os.getpid(), source).hello()
    except DoesNotStart as e:
        raise PhikitError(
            f"loading {spec!r}: {source.shown} is not loaded after {START_SECONDS:g} s, or ends "
            "its process",
            "a verifier's file only defines things; leave work to its class",
        ) from e
    if "error" in hello:
        raise PhikitError(f"loading {spec!r}: {hello['error']}", hello["hint"])
    file = source.shown if source.kind == "file" else hello["file"]
    return {
        name: OwnVerifier(name, source, file, seconds)
        for name, seconds in hello["verifiers"].items()
    }


def _register(found: dict[str, OwnVerifier], spec: str) -> None:
    """Makes them known, unless one has the name of another that is."""
    for name, own in found.items():
        made = VERIFIERS[name]() if name in VERIFIERS else own
        if not isinstance(made, OwnVerifier) or made.source.place != own.source.place:
            other = made.source.shown if isinstance(made, OwnVerifier) else "this process"
            raise PhikitError(
                f"loading {spec!r}: {other} has registered a verifier {name!r} as well",
                "register one of them under another name",
            )
    for name, own in found.items():
        VERIFIERS[name] = functools.partial(_same, own)


def _same(own: OwnVerifier) -> OwnVerifier:
    return own


@functools.lru_cache(maxsize=64)
def _worker(pid: int, source: Source) -> Worker:
    """This process's worker; by process number, so that a forked copy starts its own."""
    return Worker(Path(__file__).with_name("own_worker.py"), first=asdict(source))
