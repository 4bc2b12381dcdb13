"""How the files of a corpus are cut into shards.

A shard is a list of files, or of parts of large ones. The files keep the order that
`readers.files` gives them, so that documents have the same order however many shards there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phikit.data.readers import BY_SUFFIX, Read, read, read_file
from phikit.data.reading.base import BrokenFile, File, ReaderConfig, check_readable
from phikit.data.reading.plain import has_utf16_lines
from phikit.files import explain_os_errors

_CHUNK = 1 << 24  # bytes looked through at once for the ends of lines
Shard = list[dict[str, Any]]
ROOT: dict[str, Any] = {"root": True}  # the entry of a shard that stands for the reader's own root


def shards_of(files: Sequence[File], shard_bytes: int) -> list[Shard]:
    """The files that can be read, as shards of about `shard_bytes`; JSON-able."""
    shards: list[Shard] = []
    room = 0
    for file, size in _pieces(files, shard_bytes):
        if size > room:
            shards.append([])
            room = shard_bytes
        room -= size
        shards[-1].append({**asdict(file), "path": str(file.path)})
    return shards


def read_shard(shard: Shard, reader: ReaderConfig) -> Iterator[Read]:
    """All documents of a shard."""
    for entry in shard:
        if entry == ROOT:
            yield from read(reader)
        else:
            part = tuple(entry["part"]) if entry["part"] else None
            yield from read_file(File(Path(entry["path"]), entry["name"], part), reader)


def _pieces(files: Sequence[File], shard_bytes: int) -> Iterator[tuple[File, int]]:
    for file in files:
        if file.suffix not in BY_SUFFIX:
            continue
        try:
            check_readable(file.path)
        except BrokenFile:
            yield file, 0  # its reader will set it aside
            continue
        with explain_os_errors(file.path, "reading"):
            size = file.path.stat().st_size
            lines = not file.packing and file.suffix in (".jsonl", ".ndjson")
            if size > shard_bytes and lines and not has_utf16_lines(file):
                yield from _lines(file, shard_bytes)
            elif size > shard_bytes and file.suffix == ".parquet":
                yield from _row_groups(file, shard_bytes, size)
            else:
                yield file, size


def _lines(file: File, shard_bytes: int) -> Iterator[tuple[File, int]]:
    """Parts of a file of lines, each ending where a line ends."""
    with file.path.open("rb") as stream:
        begin, first, at, lines = 0, 1, 0, 1
        while chunk := stream.read(_CHUNK):
            while at + len(chunk) - begin >= shard_bytes:
                # the first end of a line from the wanted size on
                end = chunk.find(b"\n", max(0, begin + shard_bytes - at - 1))
                if end < 0:
                    break
                lines += chunk.count(b"\n", 0, end + 1)
                chunk, at = chunk[end + 1 :], at + end + 1
                yield File(file.path, file.name, (begin, at, first)), at - begin
                begin, first = at, lines
            lines += chunk.count(b"\n")
            at += len(chunk)
        if at > begin:
            yield File(file.path, file.name, (begin, at, first)), at - begin


def _row_groups(file: File, shard_bytes: int, size: int) -> Iterator[tuple[File, int]]:
    try:
        with pq.ParquetFile(file.path) as table:
            rows = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
            sizes = [table.metadata.row_group(g).total_byte_size for g in range(len(rows))]
    except pa.ArrowException:
        yield file, size  # its reader will set it aside
        return
    begin, first, held = 0, 1, 0
    for group, held_here in enumerate(sizes):
        held += held_here
        if held >= shard_bytes or group == len(sizes) - 1:
            yield File(file.path, file.name, (begin, group + 1, first)), held
            first += sum(rows[begin : group + 1])
            begin, held = group + 1, 0
