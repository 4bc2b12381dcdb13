"""What samples start from: excerpts of prose, pieces of code and problems, drawn from documents.

A seed's id is its document's, so that a sample's lineage begins at the document. Which seed a
sample gets is a function of the stream, the dataset type and the sample's index.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from phikit.data.readers import ReaderConfig, files, read_file
from phikit.errors import PhikitError
from phikit.records import SCHEMAS, Document, Sample, iter_records
from phikit.stage import Config
from phikit.synth.workflows import reversals

_PARAGRAPH = re.compile(r"\n\s*\n")
_SHORTEST = 40  # characters of a piece of code


class SeedConfig(Config):
    """How documents become seeds.

    Attributes:
        excerpt_words: of an excerpt of prose, at most; whole paragraphs where they fit.
        least_words: shorter excerpts are no seeds.
        per_document: excerpts from one document, at most.
        code_chars: longer pieces of code are no seeds.
        least_quality: documents with a lower score (`quality` in their meta) are no seeds.
        most: seeds of one kind; no more documents are read than give so many.
    """

    excerpt_words: int = Field(default=180, ge=20)
    least_words: int = Field(default=40, ge=1)
    per_document: int = Field(default=4, ge=1)
    code_chars: int = Field(default=1500, ge=50)
    least_quality: float = 0.0
    most: int = Field(default=200_000, ge=1)


@dataclass(frozen=True, slots=True)
class Seed:
    """What a sample starts from: a text, and the id of the document it is from.

    Attributes:
        tests: of a function, its recorded behaviour as the "code" verifier takes it.
        topic: what the document is called, for reports.
    """

    id: str = ""
    text: str = ""
    tests: str = ""
    topic: str = ""


@dataclass
class Seeds:
    """The seeds there are, by kind."""

    by_kind: Mapping[str, Sequence[Seed]] = field(default_factory=dict)

    def draw(self, kind: str, name: str, stream: str, index: int) -> Seed:
        """The seed of one sample of a type: each is used once before any is used again.

        Raises:
            PhikitError: there is no seed of the kind.
        """
        if kind == "none":
            return Seed()
        seeds = self.by_kind.get(kind, ())
        if not seeds:
            raise PhikitError(
                f"the dataset type {name!r} starts from a {kind}, and the seeds hold none",
                "leave the type out, or give documents that hold one",
            )
        epoch, place = divmod(index, len(seeds))
        rng = Random(f"{stream}/{name}/seeds/{epoch}")
        # a step that is prime to the count visits every seed once
        start, step = rng.randrange(len(seeds)), _stride(len(seeds), rng)
        return seeds[(start + place * step) % len(seeds)]


def _stride(count: int, rng: Random) -> int:
    while True:
        step = rng.randrange(1, count + 1)
        a, b = step, count
        while b:
            a, b = b, a % b
        if a == 1:
            return step


def of_documents(documents: Iterable[Document], settings: SeedConfig, kinds: set[str]) -> Seeds:
    """The seeds of the kinds that are wanted."""
    found: dict[str, list[Seed]] = {kind: [] for kind in kinds}
    code: list[Document] = []
    read = kinds & {"document", "code", "function"}

    def wanted(kind: str) -> bool:
        held = code if kind == "function" else found.get(kind, [])
        return kind in read and len(held) < settings.most

    for document in documents:
        if not any(map(wanted, read)):
            break
        if float(document.meta.get("quality", settings.least_quality)) < settings.least_quality:
            continue
        if document.source == "code":
            if wanted("code") and _SHORTEST <= len(document.text) <= settings.code_chars:
                found["code"].append(Seed(document.id, document.text.strip(), "", _topic(document)))
            if wanted("function"):
                code.append(document)
        elif wanted("document"):
            for text in excerpts(document.text, settings)[: settings.per_document]:
                found["document"].append(Seed(document.id, text, "", _topic(document)))
    for made in reversals(code) if code else ():
        text = made.response.removeprefix("```python\n").removesuffix("\n```")
        seed = Seed(made.parents[0], text, made.answer, str(made.meta["name"]))
        found["function"].append(seed)
    return Seeds(found)


def of_problems(samples: Iterable[Sample]) -> list[Seed]:
    """Problems as seeds: what was asked."""
    found = []
    for sample in samples:
        users = [m["content"] for m in sample.messages if m["role"] == "user"]
        if users:
            found.append(Seed(sample.id, users[-1], topic=sample.kind))
    return found


def excerpts(text: str, settings: SeedConfig) -> list[str]:
    """Runs of whole paragraphs of at most `excerpt_words`; a longer paragraph is cut at words."""
    found: list[str] = []
    held: list[str] = []
    size = 0

    def close() -> None:
        nonlocal held, size
        if size >= settings.least_words:
            found.append("\n\n".join(held))
        held, size = [], 0

    for paragraph in _PARAGRAPH.split(text.strip()):
        words = paragraph.split()
        while len(words) > settings.excerpt_words:
            close()
            found.append(" ".join(words[: settings.excerpt_words]))
            words = words[settings.excerpt_words :]
            paragraph = " ".join(words)
        if size + len(words) > settings.excerpt_words:
            close()
        if words:
            held.append(paragraph.rstrip())
            size += len(words)
    close()
    return found


def _topic(document: Document) -> str:
    return str(document.meta.get("name") or document.meta.get("path") or document.source)


def documents_at(path: Path) -> Iterator[Document]:
    """The documents of a run directory (its last stage with some), of a stage's folder or Parquet
    file, or of files of one's own, read as `data.documents` reads them.

    Raises:
        PhikitError: nothing is there.
    """
    stored = path / "documents.parquet" if path.is_dir() else path
    if path.is_dir() and not stored.exists():
        of_stages = sorted(path.glob("[0-9][0-9]*-*/documents.parquet"))
        stored = of_stages[-1] if of_stages else path
    if stored.suffix == ".parquet" and stored.exists() and _holds_documents(stored):
        yield from iter_records(stored, Document)
        return
    settings = ReaderConfig()
    for file in files([path]):
        for found in read_file(file, settings):
            if isinstance(found, Document):
                yield found


def _holds_documents(path: Path) -> bool:
    """Other Parquet files have columns of their own, which the reader looks for a text in."""
    try:
        return bool(pq.read_schema(path).names == SCHEMAS[Document].names)
    except (pa.ArrowInvalid, OSError):
        return False
