"""The one interface through which all of phikit decides whether an answer is right.

The same verifier object validates synthetic data, is the oracle of Pivotal Token Search, the
reward of GRPO and the scorer of the evaluations.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol, runtime_checkable

from phikit.errors import PhikitError, did_you_mean
from phikit.records import Sample, Verdict, read_records


@dataclass(frozen=True, slots=True)
class Problem:
    """What a verifier needs to know about the question.

    Attributes:
        prompt: the question as the user asked it.
        answer: the gold answer, or what the verifier states in its own docstring (tests as JSON).
        verifier: the name of the verifier that can judge it, a key of `VERIFIERS`.
        kind: the dataset type, for reports.
    """

    prompt: str
    answer: str
    verifier: str
    kind: str = ""
    id: str = ""

    @classmethod
    def of(cls, sample: Sample) -> Problem:
        """The problem a sample poses: its last user message, or its text."""
        users = [m["content"] for m in sample.messages if m["role"] == "user"]
        return cls(
            prompt=users[-1] if users else sample.text,
            answer=sample.answer,
            verifier=sample.verifier,
            kind=sample.kind,
            id=sample.id,
        )


def read_problems(folder: Path) -> list[Sample]:
    """The samples or items of a stage's folder that name a verifier.

    Raises:
        PhikitError: there are none.
    """
    paths = [folder / name for name in ("samples.parquet", "items.parquet")]
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise PhikitError(
            f"{folder}: neither samples.parquet nor items.parquet is here",
            "give the folder of a stage that makes problems, such as synth.procedural",
        )
    samples = [sample for sample in read_records(path, Sample) if sample.verifier]
    if not samples:
        raise PhikitError(f"{path}: no sample names a verifier: nothing can be judged")
    return samples


class Verifier(Protocol):
    """(problem, answer) pairs in, verdicts out, in the same order.

    A wrong or malformed answer is a failed verdict with a reason, never an exception.
    """

    name: str

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        """A verdict for each pair of problem and answer, in their order.

        Raises:
            BadRecord: a problem's own answer is of no use, so that nothing can be judged by it.
            PhikitError: nothing can be judged at all, as where a library is missing.
        """
        ...


@runtime_checkable
class Demanding(Protocol):
    """A verifier whose problems' answers are demands on the response."""

    def impossible(self, answer: str, where: str) -> str:
        """Why no response could keep to the demands, or nothing.

        Raises:
            BadRecord: `answer` is no list of demands that it knows; says `where`.
        """
        ...


VERIFIERS: dict[str, Callable[[], Verifier]] = {}
BUILT_IN = (
    "math",
    "number",
    "choice",
    "exact",
    "code",
    "refusal",
    "format",
    "instructions",
    "gym",
)  # each in the module so named
ENTRY_POINTS = "phikit.verifiers"  # the group in which installed packages offer theirs


def register(name: str) -> Callable[[Callable[[], Verifier]], Callable[[], Verifier]]:
    """Class decorator: makes a verifier known under `name`.

    Raises:
        PhikitError: it is a built-in verifier's name, or has a colon in it.
    """

    def add(make: Callable[[], Verifier]) -> Callable[[], Verifier]:
        built_in = name in BUILT_IN and make.__module__ != f"phikit.verify.{name}"
        if built_in or not name or ":" in name:
            what = "the name of a built-in verifier" if built_in else "no name for a verifier"
            raise PhikitError(f"{name!r} is {what}", "register it under another name")
        VERIFIERS[name] = make
        return make

    return add


def get(name: str) -> Verifier:
    """A verifier by name: a built-in one, a registered one, or one of an installed package.

    Nothing else is loaded, whatever the name is, for it may come out of a file of problems; see
    `phikit.verify.own` for verifiers that a user names by their file.

    Raises:
        PhikitError: there is none of that name; names the nearest.
    """
    check_name(name)
    if name in BUILT_IN:
        importlib.import_module(f"phikit.verify.{name}")
    elif name not in VERIFIERS:
        importlib.import_module("phikit.verify.own").load_installed(name)
    return VERIFIERS[name]()


def check_name(name: str) -> None:
    """Checks that there is a verifier of that name, without loading it.

    Raises:
        PhikitError: there is none (names the nearest), or an installed package claims the name of a
            built-in one.
    """
    installed = entry_points(tuple(sys.path))
    if name in BUILT_IN and name in installed:
        raise PhikitError(
            f"{name!r} is the name of a built-in verifier, and the installed package "
            f"{installed[name][0]} offers another under it",
            "uninstall that package, or have it use another name",
        )
    if name not in (known := {*VERIFIERS, *BUILT_IN, *installed}):
        raise PhikitError(
            f"no verifier is named {name!r}",
            f"{did_you_mean(name, known)}; one of your own is loaded by naming its file, "
            "FILE.py:NAME, on the command line or in the recipe, never by a file of problems",
        )


@functools.cache
def entry_points(path: tuple[str, ...]) -> dict[str, tuple[str, str]]:
    """name → (package, "module:object") of the verifiers that installed packages offer.

    Args:
        path: where they are looked for, `sys.path`.

    Raises:
        PhikitError: two packages offer one name.
    """
    found: dict[str, tuple[str, str]] = {}
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if ":" in point.name:
            continue  # what has a colon in it names a file or a module
        package = point.dist.name if point.dist else "?"
        other, value = found.setdefault(point.name, (package, point.value))
        if (other, value) != (package, point.value):
            raise PhikitError(
                f"the packages {other} and {package} both offer a verifier {point.name!r}",
                "uninstall one of them",
            )
    return found


class ByName:
    """Sends each problem to the verifier that it names: the verifier most callers want."""

    name = "by-name"

    def verify(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        groups: dict[str, list[int]] = {}
        for i, (problem, _) in enumerate(items):
            groups.setdefault(problem.verifier, []).append(i)
        verdicts: dict[int, Verdict] = {}
        for name, indices in groups.items():
            done = get(name).verify([items[i] for i in indices])
            verdicts.update(zip(indices, done, strict=True))
        return [verdicts[i] for i in range(len(items))]
