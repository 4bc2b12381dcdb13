"""The run directory: one folder per stage, what each was made from, and who may write there.

    runs/nano/
      recipe.yaml        the recipe with every setting written out
      ledger.jsonl       what ran, from what, when, at what cost: one line per event
      07-sft/            a stage's artefacts, with
        started.json       what it was started as (written first)
        stage.json         what it is, its summary, cost, and every artefact's size and hash
                           (written last: a stage is done when this file is there)
      .superseded/       the version before the present one of each stage, taken back when its
                         settings return; older versions are deleted

A stage is known by its `Identity`, whose hash is its address. Two stages with equal addresses are
interchangeable, whatever they are called and wherever they stand.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from phikit.errors import PhikitError
from phikit.files import (
    canonical_json,
    explain_os_errors,
    is_leftover,
    read_json,
    sha256_file,
    write_json,
)

STAGE_FOLDER = re.compile(r"\d{2,}-(.+)")
_OWN_FILES = ("started.json", "stage.json")


@dataclass(frozen=True)
class Identity:
    """All that a stage's result depends on.

    Attributes:
        inputs: role → addresses of the stages given.
        files: path → fingerprint of what it reads from outside the run.
    """

    verb: str
    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, ...]]
    seed: int
    threads: int
    code: str
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """32 hex digits of SHA-256 over the identity."""
        return hashlib.sha256(canonical_json(asdict(self)).encode()).hexdigest()[:32]

    def differs(self, old: Mapping[str, Any]) -> str:
        """Why a stage that was made as `old` is not this one, in a few words."""
        for key, value in self.config.items():
            before = old["config"].get(key)
            if before != value:
                return f"{key} was {before!r}, now {value!r}"
        if gone := old["config"].keys() - self.config.keys():
            return f"{min(gone)} is no longer set"
        for key in ("verb", "seed", "threads"):
            if old[key] != getattr(self, key):
                return f"{key} was {old[key]}, now {getattr(self, key)}"
        for role, addresses in self.inputs.items():
            if list(old["inputs"].get(role, ())) != list(addresses):
                return f"its input {role} changed"
        for path, mark in self.files.items():
            if old.get("files", {}).get(path) != mark:
                return f"{path} changed"
        return "its code changed" if old["code"] != self.code else "its inputs changed"


def done(folder: Path) -> dict[str, Any] | None:
    """The stage.json of a finished stage; None when the stage did not finish."""
    path = folder / "stage.json"
    return read_json(path) if path.exists() else None


def started(folder: Path) -> dict[str, Any] | None:
    """The started.json of a stage; None when it was not even started."""
    path = folder / "started.json"
    return read_json(path) if path.exists() else None


def stages(run: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The finished stages of a run in their order: (folder, what its stage.json says)."""
    return [(folder, record) for folder in _folders(run) if (record := done(folder))]


def newest_model(path: Path) -> Path:
    """The model that a path means: itself, or the last one that a run directory's stages made.

    Raises:
        PhikitError: there is no model there.
    """
    if (path / "config.json").exists():
        return path
    if (path / "model" / "config.json").exists():
        return path / "model"
    for folder, _ in reversed(stages(path)):
        if (folder / "model" / "config.json").exists():
            return folder / "model"
    raise PhikitError(
        f"{path}: no model here",
        "give a model directory, or a run directory in which a training stage is done",
    )


def artefacts(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file of a stage's folder, by relative path.

    What a killed process left there half-written, or half-removed, is none of them.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {
        name.as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        for file in files
        if not is_leftover(name := file.relative_to(folder)) and name.as_posix() not in _OWN_FILES
    }


def damage(folder: Path, record: Mapping[str, Any], hashes: bool) -> str:
    """What is wrong with a finished stage's files, or "". Sizes always; hashes when asked."""
    for name, recorded in record["artefacts"].items():
        file = folder / name
        if not file.is_file():
            return f"{file} is missing"
        if (size := file.stat().st_size) != recorded["bytes"]:
            return f"{file} has {size} bytes, not the {recorded['bytes']} that were written"
        if hashes and sha256_file(file) != recorded["sha256"]:
            return f"{file} is corrupt: its SHA-256 is not the recorded one"
    return ""


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run directory for this process; the lock goes when the process does.

    Raises:
        PhikitError: another process holds it; names that process.
    """
    path = run / ".lock"
    with explain_os_errors(path, "writing"):
        file = path.open("a+")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            file.seek(0)
            holder = file.read().strip()
            raise PhikitError(
                f"{run}: another run is working here (process {holder})",
                "wait for it, stop it, or choose another folder with --out",
            ) from e
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class Shelf:
    """Finds stage folders by address, and puts them where the plan wants them."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.superseded = run / ".superseded"

    def by_address(self) -> dict[str, Path]:
        """Every stage folder, finished or only started, in the run or set aside, by address."""
        found: dict[str, Path] = {}
        for folder in [*_children(self.superseded), *_folders(self.run)]:
            if record := done(folder) or started(folder):
                found[record["address"]] = folder
        return found

    def arrange(self, wanted: Mapping[str, str], resumable: set[str]) -> None:
        """Makes every folder NAME hold address `wanted[NAME]` or not exist.

        Folders that hold something else are set aside, and taken back from there when they are
        wanted. Only the newest of those set aside is kept of each stage. What was started but can
        neither be used nor resumed is deleted.
        """
        with explain_os_errors(self.run, "arranging"):
            for trash in self.superseded.glob(".trash-*"):
                shutil.rmtree(trash)
            for folder in _folders(self.run):
                record = done(folder) or started(folder)
                if record is None:
                    self.discard(folder)
                elif record["address"] != wanted.get(folder.name):
                    self._set_aside(folder, record["address"])
            found = self.by_address()
            for name, address in wanted.items():
                folder = self.run / name
                if address in found and found[address] != folder:
                    found[address].rename(folder)
                if started(folder) and not done(folder) and address not in resumable:
                    self.discard(folder)
            self._drop_older()

    def discard(self, folder: Path) -> None:
        """Deletes a folder so that it is never seen half-deleted."""
        self.superseded.mkdir(exist_ok=True)
        trash = self.superseded / f".trash-{folder.name}-{time.time_ns()}"
        folder.rename(trash)
        shutil.rmtree(trash)

    def _set_aside(self, folder: Path, address: str) -> None:
        self.superseded.mkdir(exist_ok=True)
        target = self.superseded / f"{folder.name}-{address[:12]}"
        if target.exists():
            self.discard(target)
        os.utime(folder)  # when it was set aside
        folder.rename(target)

    def _drop_older(self) -> None:
        """Deletes all but the newest of each stage's versions that were set aside."""
        kept: set[str] = set()
        folders = _children(self.superseded)
        for folder in sorted(folders, key=lambda f: f.stat().st_mtime_ns, reverse=True):
            name = folder.name.partition("-")[2].rpartition("-")[0]  # "07-NAME-ADDRESS"
            if name in kept:
                self.discard(folder)
            kept.add(name)


def open_folder(run: Path) -> None:
    """Makes the run directory, refusing a folder that holds something else.

    The ledger is the mark of a run directory, so it is there, if only empty, before anything else.

    Raises:
        PhikitError: the folder is not a run's, or cannot be written.
    """
    mark = run / "ledger.jsonl"
    with explain_os_errors(run, "making the folder"):
        run.mkdir(parents=True, exist_ok=True)
        if mark.exists():
            return
        strangers = sorted(run.iterdir())
        if not strangers:
            mark.touch()
            return
    raise PhikitError(
        f"{run}: not a run directory, and not empty (it holds {strangers[0].name})",
        "choose another folder with --out",
    )


def clear(run: Path) -> None:
    """Deletes what a run made; other files in its directory stay. The ledger is only emptied."""
    with explain_os_errors(run, "deleting"):
        for folder in [*_folders(run), run / ".superseded"]:
            if folder.exists():
                shutil.rmtree(folder)
        for name in ("recipe.yaml", "report.html"):
            (run / name).unlink(missing_ok=True)
        (run / "ledger.jsonl").write_text("")


def write_started(
    folder: Path, identity: Identity, earlier_seconds: float, versions: Mapping[str, str]
) -> None:
    """Marks a stage's folder as begun."""
    with explain_os_errors(folder, "making the folder"):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "started.json",
        {
            "address": identity.address,
            "identity": asdict(identity),
            "at": time.time(),
            "earlier_seconds": earlier_seconds,
            "versions": dict(versions),
        },
    )


def seconds_so_far(folder: Path) -> float:
    """How long the killed attempts at a stage worked: until the last file that each wrote."""
    record = started(folder)
    if record is None:
        return 0.0
    newest = max(file.stat().st_mtime for file in folder.rglob("*") if file.is_file())
    return float(record["earlier_seconds"]) + max(0.0, newest - float(record["at"]))


def _folders(run: Path) -> list[Path]:
    return [folder for folder in _children(run) if STAGE_FOLDER.fullmatch(folder.name)]


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
