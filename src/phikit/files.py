"""Durable files: whatever is written here is either wholly there or not there at all.

A run may be killed at any instant, so nothing is ever written in place. A file is written beside
its destination, flushed to the disk, and renamed over it; a directory likewise; an append-only
journal tolerates a torn last line, which is cut off when the journal is opened again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from phikit.errors import PhikitError

_TEMPORARY = ".tmp"  # how the hidden name ends of what is being written
_OLD = ".old"  # and of what is being removed


def cache_folder() -> Path:
    """Where phikit keeps what it downloaded, converted or compiled for this user."""
    return Path.home() / ".cache" / "phikit"


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in hexadecimal; it is read in pieces, whatever its size."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """Changes when what is there does: a file by its bytes, a folder by its files' sizes and times.

    Empty when nothing is there.
    """
    if path.is_file():
        return sha256_file(path)
    if not path.is_dir():
        return ""
    listing = sorted(
        (str(file.relative_to(path)), (stat := file.stat()).st_size, stat.st_mtime_ns)
        for file in path.rglob("*")
        if file.is_file()
    )
    return hashlib.sha256(canonical_json(listing).encode()).hexdigest()


@contextmanager
def explain_os_errors(path: Path, doing: str) -> Iterator[None]:
    """Turns a full disk or a forbidden path into a `PhikitError` that names the path."""
    try:
        yield
    except OSError as e:
        if e.errno == errno.ENOSPC:
            raise PhikitError(
                f"the disk is full: {doing} {path}",
                "free some space and run the same command again; what was done stays done",
            ) from e
        if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PhikitError(
                f"not allowed: {doing} {path} ({e.strerror})",
                "change the folder's permissions, or choose another folder",
            ) from e
        if e.errno == errno.ENOENT:
            during = "" if doing == "reading" else f" ({doing})"
            raise PhikitError(f"no such file: {e.filename or path}{during}") from e
        if e.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise PhikitError(f"{doing} {path}: {e.strerror}") from e
        raise


def temporary_name(path: Path) -> Path:
    """Where a file or directory is written before it takes its name."""
    return path.with_name(f".{path.name}{_TEMPORARY}")


def _old(path: Path) -> Path:
    """Where a directory is moved before it is removed."""
    return path.with_name(f".{path.name}{_OLD}")


def fsync_path(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Writes a file so that it is never seen half-written, even after a crash."""
    data = content.encode() if isinstance(content, str) else content
    temporary = temporary_name(path)
    with explain_os_errors(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
        fsync_path(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON, indented, as `write_atomic` does."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        PhikitError: it cannot be read, or is not in UTF-8.
    """
    with explain_os_errors(path, "reading"):
        data = path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise PhikitError(
            f"{path}:{line}: byte {data[e.start]:#04x} is not UTF-8 text",
            "give the file in UTF-8",
        ) from e


def read_json(path: Path) -> Any:
    """The JSON of a file.

    Raises:
        PhikitError: it cannot be read, or is not valid JSON; names the file and the line.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise PhikitError(f"{path}:{e.lineno}: not valid JSON: {e.msg}") from e


def remove_directory(path: Path) -> None:
    """Removes a directory so that no half of it is ever found under its name.

    What an earlier removal left, killed half-way, goes too; that there is neither is no error.
    """
    shutil.rmtree(_old(path), ignore_errors=True)
    if path.exists():
        path.rename(_old(path))
        shutil.rmtree(_old(path))


def is_leftover(path: Path) -> bool:
    """Whether a path lies in what a process killed while it wrote, or removed, has left."""
    return any(p.startswith(".") and p.endswith((_TEMPORARY, _OLD)) for p in path.parts)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Gives an empty directory to fill; on success it takes `path`'s place in one rename."""
    temporary = temporary_name(path)
    with explain_os_errors(path, "writing"):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    try:
        with explain_os_errors(path, "writing"):
            yield temporary
            for file in temporary.rglob("*"):
                fsync_path(file)
            if path.exists():
                shutil.rmtree(_old(path), ignore_errors=True)
                path.rename(_old(path))
                temporary.rename(path)
                shutil.rmtree(_old(path))
            else:
                temporary.rename(path)
            fsync_path(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


class LineFile:
    """JSON lines, streamed to a file that appears whole when the block ends without error."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = temporary_name(path)

    def __enter__(self) -> LineFile:
        with explain_os_errors(self.path, "writing"):
            self._file = self._temporary.open("w", encoding="utf-8")
        return self

    def add(self, row: Mapping[str, Any]) -> None:
        """Writes a row as one line of JSON.

        Raises:
            PhikitError: the disk refuses it.
        """
        with explain_os_errors(self.path, "writing"):
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with explain_os_errors(self.path, "writing"):
            self._file.close()
            if kind is None:
                fsync_path(self._temporary)
                self._temporary.replace(self.path)


class Journal:
    """An append-only file of JSON lines, durable line by line.

    Opening it reads what is there; a torn last line (the process was killed while writing it) is
    cut off. `append` returns only when the rows are on the disk.

    Raises:
        PhikitError: a line before the last one is not valid JSON; names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with explain_os_errors(path, "opening"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.rows, good = self._read()
            self._file = path.open("ab")
            self._file.truncate(good)
            self._file.seek(good)

    def _read(self) -> tuple[list[dict[str, Any]], int]:
        if not self.path.exists():
            return [], 0
        rows: list[dict[str, Any]] = []
        good = 0
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError as e:
                if number == len(lines):
                    break
                raise PhikitError(
                    f"{self.path}:{number}: the journal is corrupt here",
                    "cut the file before this line to keep what comes before it",
                ) from e
            good += len(line)
        return rows, good

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Adds rows; when this returns they are on the disk.

        Raises:
            PhikitError: the disk refuses them.
        """
        self.write(*rows)
        self.sync()

    def write(self, *rows: Mapping[str, Any]) -> None:
        """Adds rows that outlive this process, and the machine once `sync` has returned.

        Raises:
            PhikitError: the disk refuses them.
        """
        with explain_os_errors(self.path, "appending to"):
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self._file.write(data.encode())
            self._file.flush()
        self.rows.extend(dict(row) for row in rows)

    def sync(self) -> None:
        """Returns when all that was written is on the disk; may be called in another thread.

        Raises:
            PhikitError: the disk refuses it.
        """
        with explain_os_errors(self.path, "appending to"):
            os.fsync(self._file.fileno())

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replaces the whole content at once (used to fall back to a durable point)."""
        self._file.close()
        write_atomic(self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        self.rows = rows
        self._file = self.path.open("ab")

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
