"""A finished search as it lies in its folder, whether a command or a recipe's stage made it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.files import explain_os_errors, read_json
from phikit.records import Pair, Sample, read_records
from phikit.verify.base import read_problems

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SearchFolder:
    """Attributes: `record` is stage.json; `pivots` are the confirmed ones with their texts."""

    path: Path
    record: Row
    pivots: list[Row]

    def traces(self) -> Iterator[Row]:
        """Every question's search, one by one: see `results.Trace`."""
        return rows(self.path / "searches.jsonl")

    def pairs(self) -> list[Pair]:
        """The preference pairs that the search made.

        Raises:
            PhikitError: their file cannot be read.
        """
        return read_records(self.path / "pairs.parquet", Pair)

    def problems(self) -> dict[str, Sample]:
        """The searched problems by id; none when the folder they came from is gone."""
        own = self.path / "problems.parquet"
        if own.exists():
            return {s.id: s for s in read_records(own, Sample)}
        folder = self._input("problems")
        return {s.id: s for s in read_problems(folder)} if folder else {}

    @property
    def model(self) -> Path:
        """The directory of the model that was searched.

        Raises:
            PhikitError: it is not where it was.
        """
        if "model" in self.record:
            return Path(self.record["model"])
        if (folder := self._input("model")) is None:
            raise PhikitError(
                f"{self.path}: the model of this search is not where it was",
                "name it with --model",
            )
        return folder / "model"

    def _input(self, role: str) -> Path | None:
        """The folder that a stage was given: by its path, or by its name within the same run."""
        given = self.record.get("inputs", {}).get(role)
        name = given[0] if isinstance(given, list) else given
        if not name:
            return None
        named = [Path(name), *self.path.resolve().parent.glob(f"[0-9]*-{name}")]
        return next((p for p in named if p.is_dir()), None)


def pair_folder(path: Path) -> SearchFolder:
    """Opens the folder of a finished search, or of another stage that made pairs.

    Raises:
        PhikitError: there is none, or it is not finished.
    """
    if (path / "stage.json").exists() and not (path / "pivots.jsonl").exists():
        if not (path / "pairs.parquet").exists():
            raise PhikitError(
                f"{path}: this stage made no pairs",
                "give the folder of a search, or of a stage such as pivots.refusals",
            )
        return SearchFolder(path, read_json(path / "stage.json"), [])
    return search_folder(path)


def search_folder(path: Path) -> SearchFolder:
    """Opens the folder of a finished search.

    Raises:
        PhikitError: there is none, or it is not finished.
    """
    if not (path / "stage.json").exists():
        begun = (path / "job.json").exists() or (path / "rounds").exists()
        raise PhikitError(
            f"{path}: " + ("the search here is not finished" if begun else "no search is here"),
            "run the same `phikit pivots run` again to go on" if begun else
            "give the folder that `phikit pivots run --out` or a recipe's search stage has written",
        )  # fmt: skip
    record = read_json(path / "stage.json")
    if record.get("verb") != "pivots.search":
        raise PhikitError(
            f"{path}: the folder of a {record.get('verb')} stage, not of a search",
            "give the folder of a pivots.search stage",
        )
    return SearchFolder(path, record, list(rows(path / "pivots.jsonl")))


def rows(path: Path) -> Iterator[Row]:
    """The objects of a JSON-lines file.

    Raises:
        PhikitError: the file is missing, or a line is not valid JSON; names file and line.
    """
    with explain_os_errors(path, "reading"), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as e:
                raise PhikitError(f"{path}:{number}: not valid JSON: {e.msg}") from e
