"""A run directory as the report reads it: its finished stages and how they hang together."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from phikit.errors import PhikitError
from phikit.files import explain_os_errors, read_json
from phikit.records import Record, read_records

_FOLDER = re.compile(r"\d{2,}-(.+)")
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Done:
    """A finished stage: what its stage.json says. `inputs`: role → names of stages."""

    name: str
    verb: str
    folder: Path
    address: str
    inputs: Mapping[str, tuple[str, ...]]
    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    cost: Mapping[str, float]
    record: Mapping[str, Any]

    @property
    def parents(self) -> tuple[str, ...]:
        return tuple(name for names in self.inputs.values() for name in names)

    def given(self, role: str) -> str:
        """The name of the one stage given as `role`, or an empty string."""
        return next(iter(self.inputs.get(role, ())), "")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSON-lines file of the stage; none when there is no such file.

        Raises:
            PhikitError: a line is not valid JSON; names file and line.
        """
        path = self.folder / name
        if not path.exists():
            return []
        with explain_os_errors(path, "reading"):
            lines = path.read_text(encoding="utf-8").split("\n")
        rows = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except json.JSONDecodeError as e:
                    raise PhikitError(f"{path}:{number}: not valid JSON: {e.msg}") from e
        return rows

    def records(self, name: str, cls: type[R]) -> list[R]:
        """The records of a Parquet file of the stage; none when there is no such file."""
        path = self.folder / name
        return read_records(path, cls) if path.exists() else []


class Run:
    """The finished stages of a run, in order.

    Raises:
        PhikitError: the folder is not a run directory, or no stage is done.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with explain_os_errors(directory, "reading"):
            folders = sorted(p for p in directory.iterdir() if _FOLDER.fullmatch(p.name))
        found = [read for folder in folders if (read := _read(folder))]
        if not found:
            raise PhikitError(
                f"{directory}: no finished stage here",
                "give the folder of a run, such as runs/nano",
            )
        self.stages: tuple[Done, ...] = tuple(found)
        self.by_name: dict[str, Done] = {stage.name: stage for stage in found}

    def of(self, *verbs: str) -> list[Done]:
        """The stages with one of these verbs, in order."""
        return [stage for stage in self.stages if stage.verb in verbs]

    @property
    def training(self) -> list[Done]:
        return [stage for stage in self.stages if stage.verb.startswith("train.")]

    @cached_property
    def chain(self) -> list[Done]:
        """The training stages that the final model went through, first to last.

        The final model is the exported one; without an export, the last one that was evaluated;
        without that, the last one trained. Other training stages are ablations.
        """
        trained = {stage.name for stage in self.training}
        named = [stage.given("model") for verb in ("export.hf", "evals.run")
                 for stage in reversed(self.of(verb))]  # fmt: skip
        named += [stage.name for stage in reversed(self.training)]
        name = next((n for n in named if n in trained), "")
        return list(reversed(list(self.ancestry(name))))

    def ancestry(self, name: str) -> Iterator[Done]:
        """A training stage, the one whose model it went on from, and so on back to the first."""
        while (stage := self.by_name.get(name)) and stage.verb.startswith("train."):
            yield stage
            name = stage.given("model")

    def consumers(self, name: str) -> list[Done]:
        """Every stage that depends on a stage, in order."""
        reached = {name}
        for stage in self.stages:
            if reached & set(stage.parents):
                reached.add(stage.name)
        return [stage for stage in self.stages if stage.name in reached and stage.name != name]

    @cached_property
    def recipe(self) -> str:
        """recipe.yaml as text, or an empty string."""
        path = self.directory / "recipe.yaml"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def settings(self) -> dict[str, Any]:
        """What recipe.yaml says: name, seed, threads, stages."""
        return _settings(self.recipe)


def _read(folder: Path) -> Done | None:
    path = folder / "stage.json"
    if not path.exists():
        return None
    record = read_json(path)
    try:
        return Done(
            name=record["name"],
            verb=record["verb"],
            folder=folder,
            address=record["address"],
            inputs={role: _names(value) for role, value in record["inputs"].items()},
            config=record["config"],
            summary=record["summary"] or {},
            cost=record["cost"],
            record=record,
        )
    except KeyError as e:
        raise PhikitError(f"{path}: the key {e.args[0]!r} is missing") from e


def _names(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _settings(text: str) -> dict[str, Any]:
    found = yaml.safe_load(text) if text else None
    return found if isinstance(found, dict) else {}
