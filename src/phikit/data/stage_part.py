"""The stage `data.part`: a part of the documents by a hash of their ids, to hold some out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.records import Document, iter_records, write_records
from phikit.stage import Config, Context, Estimate, Stage


class PartConfig(Config):
    """Which part. Two stages of which one ends where the other begins share no document.

    Attributes:
        start, end: a document has a place in [0, 1) by its id; it is in if start ≤ place < end.
        salt: another one gives documents other places.
    """

    start: float = Field(default=0, ge=0, le=1)
    end: float = Field(default=1, ge=0, le=1)
    salt: str = ""


def place(name: str, salt: str = "") -> float:
    """The place of an id in [0, 1)."""
    digest = hashlib.blake2b(f"{salt}/{name}".encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little") / 2**48


def run_part(ctx: Context, settings: PartConfig, inputs: Mapping[str, Path]) -> dict[str, Any]:
    """Writes the documents of the part, in their order.

    Raises:
        PhikitError: none is in it.
    """
    given = inputs["documents"] / "documents.parquet"
    chars: dict[str, int] = {}

    def chosen() -> Any:
        for document in iter_records(given, Document):
            if settings.start <= place(document.id, settings.salt) < settings.end:
                chars[document.source] = chars.get(document.source, 0) + len(document.text)
                yield document

    count = write_records(ctx.dir / "documents.parquet", chosen(), Document)
    if not count:
        raise PhikitError(
            f"{given}: no document is between {settings.start} and {settings.end}",
            "widen the part",
        )
    return {"documents": count, "chars": dict(sorted(chars.items()))}


PART: Stage[PartConfig] = Stage(
    verb="data.part",
    config=PartConfig,
    run=run_part,
    inputs=("documents",),
    estimate=lambda c: Estimate(f"{c.end - c.start:.0%} of its input", 2),
    help="take a part of the documents, by a hash of their ids: to hold some out",
)
