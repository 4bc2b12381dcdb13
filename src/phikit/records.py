"""The six nouns that everything in phikit passes around. Read this file first.

    Document ──synth──▶ Sample ──train──▶ checkpoint ──engine──▶ Rollout ──verify──▶ Verdict
                                                                    └──▶ Pair      └──▶ Score

Each record is a frozen dataclass. Its `id` is a hash of its content, so equal content has an equal
id on every machine; `parents` are the ids it was made from. From any training sample or score one
can therefore walk back to the document, the teacher and the verdicts behind it. Records are stored
as Parquet with the schemas stated at the end of this file.

Token ids are the truth: what was sampled is stored, compared and trained on as ids.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from phikit.errors import PhikitError
from phikit.files import canonical_json, explain_os_errors, fsync_path, temporary_name

Meta = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What every record has. `id` is filled in from the content when it is left empty."""

    id: str = ""
    parents: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id(self))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict(Record):
    """Is this answer right? `score` is in [0, 1]; `reason` is for a person to read."""

    passed: bool
    score: float
    reason: str
    verifier: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Document(Record):
    """Organic text. `source` is the mixture class it plays in (web, code, acquired, ...)."""

    text: str
    source: str
    licence: str = ""
    language: str = "en"
    meta: Meta = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Record):
    """Something to train on or to be asked: chat messages, or plain text.

    `kind` is the dataset type that made it; `source` is its class in the mixture. A sample whose
    answer can be checked names its `verifier` and carries what that verifier needs in `answer`
    (the gold answer, or tests as JSON).
    """

    kind: str
    source: str
    text: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    verifier: str = ""
    answer: str = ""
    verdicts: tuple[Verdict, ...] = ()
    meta: Meta = dataclasses.field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Mapping[str, str], ...]:
        """The messages up to the last one that is not the assistant's."""
        messages = self.messages
        while messages and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        return messages

    @property
    def response(self) -> str:
        """The final assistant message, or an empty string."""
        if self.messages and self.messages[-1]["role"] == "assistant":
            return self.messages[-1]["content"]
        return ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(Record):
    """One sampled completion, as token ids.

    `logprobs` are natural-log probabilities of each sampled token under the distribution it was
    sampled from; `raw_logprobs` under the model's own (temperature 1, nothing cut off).
    `finish` is "stop" (an end token, kept as the last completion id) or "length".
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    raw_logprobs: tuple[float, ...] = ()
    finish: str = "stop"
    verdict: Verdict | None = None
    meta: Meta = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Record):
    """A preference: after `prompt_ids`, `chosen_ids` is better than `rejected_ids`.

    `kind` is "pivot", "judge", "rollout" or "refusal"; `evidence` says why it is believed.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    kind: str
    evidence: Meta = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score(Record):
    """The result of one sample of one evaluation item. `cost` is in tokens generated."""

    task: str
    item: str
    sample: int
    verdict: Verdict
    cost: int
    text: str = ""


R = TypeVar("R", bound=Record)


def content_id(record: Record) -> str:
    """16 hex digits of BLAKE2b over the record's type and content (its own id left out)."""
    names = [f.name for f in dataclasses.fields(record) if f.name != "id"]
    content = {name: getattr(record, name) for name in names}
    text = type(record).__name__ + canonical_json(_plain(content))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


_ATOMS = frozenset({int, float, str, bool, type(None)})


def _plain(value: Any) -> Any:
    if type(value) in _ATOMS:
        return value
    # long lists of numbers are most of what there is
    if type(value) in (list, tuple) and _ATOMS.issuperset(map(type, value)):
        return value
    if isinstance(value, Record):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


# --- Parquet -------------------------------------------------------------------------------------

_IDS = pa.list_(pa.int32())
_HEAD = [("id", pa.string()), ("parents", pa.list_(pa.string()))]
_VERDICT = pa.struct(
    [*_HEAD, ("passed", pa.bool_()), ("score", pa.float64()), ("reason", pa.string()),
     ("verifier", pa.string())]
)  # fmt: skip

# `meta`, `evidence` and chat messages are open-ended: stored as JSON text
_JSON = pa.string()
SCHEMAS: dict[type[Record], pa.Schema] = {
    Document: pa.schema(
        [*_HEAD, ("text", pa.string()), ("source", pa.string()), ("licence", pa.string()),
         ("language", pa.string()), ("meta", _JSON)]
    ),
    Sample: pa.schema(
        [*_HEAD, ("kind", pa.string()), ("source", pa.string()), ("text", pa.string()),
         ("messages", _JSON), ("verifier", pa.string()), ("answer", pa.string()),
         ("verdicts", pa.list_(_VERDICT)), ("meta", _JSON)]
    ),
    Rollout: pa.schema(
        [*_HEAD, ("prompt_ids", _IDS), ("completion_ids", _IDS),
         ("logprobs", pa.list_(pa.float32())), ("raw_logprobs", pa.list_(pa.float32())),
         ("finish", pa.string()), ("verdict", _VERDICT), ("meta", _JSON)]
    ),
    Verdict: pa.schema(list(_VERDICT)),
    Pair: pa.schema(
        [*_HEAD, ("prompt_ids", _IDS), ("chosen_ids", _IDS), ("rejected_ids", _IDS),
         ("kind", pa.string()), ("evidence", _JSON)]
    ),
    Score: pa.schema(
        [*_HEAD, ("task", pa.string()), ("item", pa.string()), ("sample", pa.int32()),
         ("verdict", _VERDICT), ("cost", pa.int64()), ("text", pa.string())]
    ),
}  # fmt: skip
_AS_JSON = {"meta", "evidence", "messages"}


def _to_row(record: Record) -> dict[str, Any]:
    row = _plain(record)
    for key in _AS_JSON & row.keys():
        row[key] = canonical_json(row[key])
    return row


def _from_row(cls: type[R], row: dict[str, Any]) -> R:
    for key, value in row.items():
        if key in _AS_JSON:
            value = json.loads(value)
        elif key == "verdict" and value is not None:
            value = _from_row(Verdict, value)
        elif key == "verdicts":
            value = [_from_row(Verdict, v) for v in value]
        row[key] = tuple(value) if isinstance(value, list) else value
    return cls(**row)


def write_records(path: Path, records: Iterable[Record], cls: type[Record]) -> int:
    """Writes records to a Parquet file atomically, in order; returns how many.

    Raises:
        PhikitError: the disk is full or the folder is not writable.
    """
    temporary = temporary_name(path)
    schema = SCHEMAS[cls]
    count = 0
    with explain_os_errors(path, "writing"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in _batches(records):
                writer.write_table(pa.Table.from_pylist([_to_row(r) for r in batch], schema))
                count += len(batch)
        fsync_path(temporary)
        temporary.replace(path)
    return count


def read_records(path: Path, cls: type[R]) -> list[R]:
    """Reads the records of a Parquet file; errors as for `iter_records`."""
    return list(iter_records(path, cls))


def iter_records(
    path: Path, cls: type[R], row_groups: tuple[int, int] | None = None
) -> Iterator[R]:
    """Yields the records of a Parquet file in order, holding few of them in memory.

    Args:
        row_groups: only those from the first number up to the second.

    Raises:
        PhikitError: the file is missing, is corrupt, or holds other records than `cls`.
    """
    with explain_os_errors(path, "reading"):
        try:
            with pq.ParquetFile(path) as file:
                if file.schema_arrow.names != SCHEMAS[cls].names:
                    raise PhikitError(
                        f"{path}: holds {file.schema_arrow.names}, not {cls.__name__} records "
                        f"({SCHEMAS[cls].names})"
                    )
                groups = range(*(row_groups or (0, file.num_row_groups)))
                for batch in file.iter_batches(1000, row_groups=groups):
                    for row in batch.to_pylist():
                        yield _from_row(cls, row)
        except pa.ArrowInvalid as e:
            raise PhikitError(
                f"{path}: not a readable Parquet file ({e})",
                "delete it and run the same command again: it will be made anew",
            ) from e


def _batches(items: Iterable[Record]) -> Iterable[Sequence[Record]]:
    """What is written at once: many small records, or few long ones."""
    batch: list[Record] = []
    chars = 0
    for item in items:
        batch.append(item)
        chars += len(getattr(item, "text", ""))
        if len(batch) == 10_000 or chars >= 1 << 25:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
