"""Parquet files, by pyarrow, and Hugging Face data sets, by `datasets`; both piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from phikit.data.reading.base import Broken, BrokenFile, File, Read, ReaderConfig
from phikit.data.reading.plain import row_document
from phikit.errors import PhikitError, how_to_install
from phikit.records import SCHEMAS, Document, iter_records

HUGGING_FACE = "hf:"
_ROWS = 256  # taken out of a table at once


def read_parquet(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """One document per row; documents that phikit wrote itself come back as they were."""
    try:
        with pq.ParquetFile(file.path, memory_map=False, pre_buffer=False) as table:
            if table.schema_arrow.names == SCHEMAS[Document].names:
                yield from _own(file)
                return
            begin, end, first = file.part or (0, table.num_row_groups, 1)
            number = first - 1
            for batch in table.iter_batches(_ROWS, row_groups=range(begin, end)):
                for row in batch.to_pylist():
                    number += 1
                    yield _document(row, file.name, number, settings)
    except (pa.ArrowException, OSError) as e:
        if isinstance(e, OSError) and e.errno is not None and not isinstance(e, pa.ArrowException):
            raise
        raise BrokenFile("not a whole Parquet file", str(e)) from e


def _own(file: File) -> Iterator[Document]:
    """Documents that phikit wrote, or that something else wrote under the same names.

    Raises:
        BrokenFile: it is damaged, or its columns do not hold what ours do.
    """
    groups = (file.part[0], file.part[1]) if file.part else None
    try:
        yield from iter_records(file.path, Document, groups)
    except (ValueError, TypeError) as e:
        raise BrokenFile("not the documents its columns name", f"{type(e).__name__}: {e}") from e
    except PhikitError as e:
        if isinstance(e.__cause__, pa.ArrowException):
            raise BrokenFile("not a whole Parquet file", str(e.__cause__)) from e
        raise


def read_hugging_face(name: str, settings: ReaderConfig) -> Iterator[Read]:
    """A data set of the hub, streamed, or a local folder: "OWNER/NAME[:CONFIG[:SPLIT]]" or a path.

    Raises:
        PhikitError: `datasets` is missing, or there is no such data set.
    """
    try:
        import datasets
    except ImportError as e:
        raise PhikitError(
            f"reading {HUGGING_FACE}{name} needs the datasets library",
            how_to_install("data"),
        ) from e
    rows: Any
    path, _, rest = name.partition(":")
    config, _, split = rest.partition(":")
    try:
        if (Path(path) / "dataset_info.json").exists() or (
            Path(path) / "dataset_dict.json"
        ).exists():
            rows = _split(datasets.load_from_disk(path), split, name)
        else:
            rows = datasets.load_dataset(
                path, config or None, split=split or "train", streaming=True
            )
    except (OSError, ValueError, LookupError) as e:
        raise PhikitError(
            f"{HUGGING_FACE}{name}: no such data set ({type(e).__name__}: {str(e)[:300]})",
            "give hf:OWNER/NAME, hf:OWNER/NAME:CONFIG:SPLIT, or hf:FOLDER",
        ) from e
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield _document(row, f"{HUGGING_FACE}{name}", number, settings)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as e:
        raise PhikitError(
            f"{HUGGING_FACE}{name}: after {number} rows: {type(e).__name__}: {str(e)[:300]}",
            "if the data set is whole, run the same command again",
        ) from e


def _split(loaded: Any, split: str, name: str) -> Any:
    """The rows of a saved data set that are meant: of several splits "train" if none is named."""
    here = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or ""): loaded}
    wanted = split or ("train" if isinstance(loaded, dict) else next(iter(here)))
    if wanted not in here:
        raise PhikitError(
            f"{HUGGING_FACE}{name}: has no split {wanted!r}",
            f"it has {', '.join(filter(None, here)) or 'none'}: hf:FOLDER::SPLIT names one",
        )
    return here[wanted]


def _document(row: Any, path: str, number: int, settings: ReaderConfig) -> Read:
    where = f"{path}:{number}"
    try:
        return row_document(row, path, where, settings)
    except ValueError as e:
        return Broken(where, "bad row", f"{type(e).__name__}: {e}")
