"""Records on the disk as tables to query: DuckDB over the Parquet files of a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phikit.errors import PhikitError, how_to_install
from phikit.records import SCHEMAS, Document, Pair, Record, Rollout, Sample, Score
from phikit.reporting.builds import KEPT, PASSED, step_of

_KINDS: tuple[type[Record], ...] = (Document, Sample, Rollout, Pair, Score)
_STAGE = re.compile(r"\d{2,}-(.+)")


@dataclass(frozen=True)
class Stored:
    """A file of records. `stage` is the name of the stage it is from, or ""."""

    path: Path
    kind: type[Record]
    stage: str

    @property
    def role(self) -> str:
        """What the file is among its stage's: "samples", "rejected", "documents", ...

        Of a corpus's steps "passed" is what the filters let through, and "gathered" what the
        corpus's stage has in one file as well.
        """
        step = step_of(self.path)
        if step == PASSED:
            return "passed"
        if step == KEPT and (self.path.parents[3] / "documents.parquet").exists():
            return "gathered"
        return self.path.stem


def stored(path: Path, empty: bool = False) -> list[Stored]:
    """The files of records at a path: a file, a stage's folder, or a run directory.

    Raises:
        PhikitError: there is none, and it may not be `empty`; or a file is no readable Parquet.
    """
    if not path.exists():
        raise PhikitError(f"{path}: there is nothing here")
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    files = [f for f in files if f.suffix == ".parquet"]
    files = [f for f in files if not any(p.startswith(".") for p in f.relative_to(path).parts)]
    found = [Stored(file, kind, _stage(file)) for file in files if (kind := _kind(file))]
    if not found and not empty:
        raise PhikitError(
            f"{path}: no records are here",
            "give a run directory, a stage's folder, or a Parquet file that phikit wrote",
        )
    return found


def _stage(file: Path) -> str:
    names = (_STAGE.fullmatch(part) for part in reversed(file.parts[:-1]))
    return next((m[1] for m in names if m), "")


def _kind(file: Path) -> type[Record] | None:
    try:
        names = pq.read_schema(file).names
    except (pa.ArrowInvalid, OSError) as e:
        raise PhikitError(f"{file}: not a readable Parquet file ({e})") from e
    return next((k for k in _KINDS if SCHEMAS[k].names == names), None)


class Tables:
    """Queries over files of records.

    Raises:
        PhikitError: DuckDB is not installed.
    """

    @cached_property
    def _connection(self) -> Any:
        try:
            import duckdb
        except ModuleNotFoundError as e:
            raise PhikitError("looking into data needs duckdb", how_to_install("data")) from e
        connection = duckdb.connect()
        connection.execute("SET threads TO 2")
        return connection

    def rows(self, sql: str, files: Sequence[Path], *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a query in which `?` first stands for the files, then for the values."""
        if not files:
            return []
        names = [str(f) for f in files]
        found: list[tuple[Any, ...]] = self._connection.execute(sql, [names, *values]).fetchall()
        return found
