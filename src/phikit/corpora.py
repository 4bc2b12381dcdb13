"""`phikit data read` and `phikit data build` as functions: what the command line asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from phikit.data.corpus import build as building
from phikit.data.corpus.config import CorpusConfig
from phikit.data.corpus.units import Here, Processes, Workers
from phikit.data.readers import files, read_file
from phikit.data.reading.base import Broken, ReaderConfig
from phikit.data.reading.tables import HUGGING_FACE, read_hugging_face
from phikit.errors import PhikitError
from phikit.files import LineFile
from phikit.recipes.settings import from_settings
from phikit.records import Document, write_records


def read(paths: Sequence[Path], out: Path, settings: Sequence[str]) -> str:
    """Reads files into `documents.parquet` and `set-aside.jsonl`; returns what to tell."""
    config = from_settings(ReaderConfig, list(settings), "data read")
    kinds: Counter[str] = Counter()
    aside: Counter[str] = Counter()
    chars = 0
    out.mkdir(parents=True, exist_ok=True)
    with LineFile(out / "set-aside.jsonl") as lines:

        def documents() -> Iterator[Document]:
            nonlocal chars
            for found in _all(paths, config):
                if isinstance(found, Broken):
                    aside[found.reason] += 1
                    lines.add({"name": found.name, "reason": found.reason,
                               "excerpt": found.excerpt})  # fmt: skip
                else:
                    kinds[str(found.meta.get("kind", "text"))] += 1
                    chars += len(found.text)
                    yield found

        total = write_records(out / "documents.parquet", documents(), Document)
    told = [f"{out / 'documents.parquet'}: {total:,} documents, {chars:,} characters"]
    told += [f"  {kind:<24} {n:,}" for kind, n in sorted(kinds.items())]
    if aside:
        told.append(f"{out / 'set-aside.jsonl'}: {aside.total():,} that cannot be read")
        told += [f"  {reason:<24} {n:,}" for reason, n in sorted(aside.items())]
    return "\n".join(told)


def _all(paths: Sequence[Path], config: ReaderConfig) -> Iterator[Document | Broken]:
    named = [str(p) for p in paths if str(p).startswith(HUGGING_FACE)]
    for name in named:
        yield from read_hugging_face(name.removeprefix(HUGGING_FACE), config)
    for file in files([p for p in paths if str(p) not in named]):
        yield from read_file(file, config)


@dataclass(frozen=True)
class Request:
    """A corpus as it is asked for; see `phikit data build -h`."""

    paths: tuple[Path, ...]
    out: Path
    items: Path | None = None
    tokenizer: Path | None = None
    tokens: int = 0
    weights: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    workers: int = 2
    ray: str = ""
    seed: int = 0


def build(request: Request, say: Callable[[str], None]) -> str:
    """Builds a corpus; returns what to tell.

    Raises:
        PhikitError: a path is not there, a weight is no CLASS=NUMBER, something is asked of a
            mixture that is not made, or as for `build`.
    """
    weights = tuple(_weight(w) for w in request.weights)
    if (request.tokens or request.weights) and request.tokenizer is None:
        raise PhikitError("tokens and weights are of a mixture", "give its tokenizer, too")
    if request.weights and not request.tokens:
        raise PhikitError(
            "weights are parts of a number of tokens, and none is given",
            "say how many, as tokens 50000000; without weights every document is taken once",
        )
    job = building.Job(
        request.paths,
        from_settings(CorpusConfig, list(request.settings), "data build"),
        _file(request.items, "items.parquet"),
        _tokenizer(request.tokenizer),
        request.tokens,
        weights,
        request.seed,
    )
    workers: Workers
    if request.ray:
        from phikit.data.corpus.ray_units import OnRay

        workers = OnRay("" if request.ray == "local" else request.ray)
    else:
        workers = Processes(request.workers) if request.workers > 1 else Here()
    last = ""

    def progress(step: str, done: int, total: int) -> None:
        nonlocal last
        line = f"{step}: {done} of {total}"
        if line != last:
            say(line)
            last = line

    report = building.build(job, request.out, workers, progress)
    told = [f"{request.out}: {report['documents']:,} documents"]
    for source, number in report["kept"].items():
        told.append(f"  {source:<28} {number:>10,}   {report['chars'][source]:,} characters")
    told.append("rejected:")
    told += [f"  {reason:<28} {n:>10,}" for reason, n in report["rejected"].items()]
    told.append(f"decontaminated against {report['decontaminated against']}")
    if "training" in report:
        told.append(f"{report['training']}: {report['mixture']['tokens']:,} tokens")
    return "\n".join(told)


def _file(path: Path | None, name: str) -> Path | None:
    """The file, also when its folder is given."""
    return path / name if path is not None and path.is_dir() else path


def _tokenizer(folder: Path | None) -> Path | None:
    if folder is None:
        return None
    for place in (folder, folder / "tokenizer"):
        if (place / "tokenizer.json").exists():
            return place
    raise PhikitError(
        f"{folder} holds no tokenizer.json", "give the folder of a model or tokenizer"
    )


def _weight(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError as e:
        raise PhikitError(f"the weight {text!r} is no CLASS=NUMBER", "such as web=0.5") from e
