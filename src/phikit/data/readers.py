"""Documents out of files: Python's own library, or a folder of one's own.

Readers stream: they yield one `Document` after the other, or a `Broken` for a file (or line) that
cannot be read, which is thereby set aside and counted instead of ending the run. The order of
the files depends on their paths alone.

Each piece of text goes under the source class of the pretraining mixture whose part it plays
(technical report, Table 5): short pieces of documentation are the "web", long expositions are the
"acquired" books and papers, source files and functions are "code".
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from phikit.errors import PhikitError
from phikit.files import explain_os_errors
from phikit.records import Document
from phikit.stage import Config

PYTHON_STDLIB = "python-stdlib"
PROSE = {".txt", ".md", ".rst"}
CODE = {".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".js", ".rb", ".rs", ".sh", ".ts"}
# Not part of the library proper: tests hold broken files on purpose, `encodings` holds tables.
STDLIB_SKIP = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class ReaderConfig(Config):
    """Where documents come from and how files are cut into them."""

    root: str = Field(
        default=PYTHON_STDLIB,
        description=f'"{PYTHON_STDLIB}" (the documented source of the Python that runs this), or '
        "a folder with .py and other source files, .txt/.md/.rst prose and .jsonl files (one "
        'object per line: "text", and optionally "source", "licence", "language", "meta")',
    )
    licence: str = Field(default="", description="licence of the folder's documents that name none")
    acquired_chars: int = Field(
        default=1500,
        gt=0,
        description='prose at least this long plays "acquired", shorter prose "web"',
    )
    docstring_chars: int = Field(
        default=200,
        gt=0,
        description="shorter docstrings of classes and functions are no documents",
    )
    split_chars: int = Field(
        default=6000,
        gt=0,
        description="a longer Python module is cut into its top-level functions and classes, and "
        "a longer class into its methods",
    )
    max_file_bytes: int = Field(
        default=50_000_000, gt=0, description="a larger file, .jsonl excepted, is set aside unread"
    )


@dataclass(frozen=True)
class Broken:
    """A file, or a line of one, that could not be read, and why."""

    name: str
    reason: str
    excerpt: str = ""


class _BrokenFile(Exception):
    """A file cannot be read: (reason, excerpt)."""


Read = Document | Broken


def read(settings: ReaderConfig) -> Iterator[Read]:
    """All documents of the configured root.

    Raises:
        PhikitError: the folder is not there.
    """
    if settings.root == PYTHON_STDLIB:
        return read_stdlib(Path(sysconfig.get_path("stdlib")), settings)
    root = Path(settings.root)
    if not root.is_dir():
        raise PhikitError(
            f"root {settings.root!r} is no folder",
            f'give a folder of documents, or "{PYTHON_STDLIB}"',
        )
    return read_folder(root, settings)


def read_stdlib(root: Path, settings: ReaderConfig) -> Iterator[Read]:
    """The language reference as prose, and every module's documentation and code."""
    licence = "PSF-2.0"
    topics = root / "pydoc_data" / "topics.py"
    if topics.exists():
        yield from _guarded(topics, root, lambda: _topics(topics, root, settings, licence))
    for path in _files(root, skip=STDLIB_SKIP):
        if path.suffix == ".py":
            yield from _python_file(path, root, settings, licence)


def read_folder(root: Path, settings: ReaderConfig) -> Iterator[Read]:
    """A user's own folder; files of other kinds than `ReaderConfig.root` names are passed over."""
    for path in _files(root, skip=set()):
        if path.suffix == ".py":
            yield from _python_file(path, root, settings, settings.licence)
        elif path.suffix == ".jsonl":
            yield from _json_lines(path, root, settings)
        elif path.suffix in PROSE | CODE:
            yield from _guarded(path, root, lambda p=path: _text_file(p, root, settings))


def _files(root: Path, skip: set[str]) -> Iterator[Path]:
    """All files, in the order of a hash of their paths: any beginning of it is a fair sample."""
    found: list[tuple[bytes, Path]] = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in skip | {"__pycache__", ".git"}]
        for path in (Path(folder) / name for name in names):
            key = os.fsencode(path.relative_to(root).as_posix())
            found.append((hashlib.blake2b(key, digest_size=16).digest(), path))
    for _, path in sorted(found):
        yield path


def _guarded(path: Path, root: Path, documents: Any) -> Iterator[Read]:
    """The file's documents, or one `Broken` in place of all of them."""
    name = path.relative_to(root).as_posix()
    try:
        yield from list(documents())
    except _BrokenFile as e:
        yield Broken(name, str(e.args[0]), e.args[1])
    except UnicodeDecodeError as e:
        yield Broken(name, "bad encoding", str(e))
    except (SyntaxError, ValueError) as e:  # ValueError: null bytes, or tables that are no literal
        yield Broken(name, "syntax error", str(e))
    except (RecursionError, MemoryError) as e:  # how the parser refuses absurd nesting
        yield Broken(name, "too deeply nested", type(e).__name__)


def _bytes(path: Path, settings: ReaderConfig) -> bytes:
    with explain_os_errors(path, "reading"):
        size = path.stat().st_size
        if size > settings.max_file_bytes:
            raise _BrokenFile("file too large", f"{size} bytes")
        return path.read_bytes()


def _source(path: Path, settings: ReaderConfig) -> str:
    """A Python file's text, in the encoding that it declares."""
    data = _bytes(path, settings)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as e:
        raise _BrokenFile("bad encoding", str(e)) from e
    return io.TextIOWrapper(io.BytesIO(data), encoding).read()


def _text_file(path: Path, root: Path, settings: ReaderConfig) -> Iterator[Document]:
    text = _bytes(path, settings).decode("utf-8")
    prose = path.suffix in PROSE
    name = path.relative_to(root).as_posix()
    yield Document(
        text=text,
        source=_prose_class(text, settings) if prose else "code",
        licence=settings.licence,
        meta={"path": name, "name": path.stem, "kind": "text" if prose else "file"},
    )


def _json_lines(path: Path, root: Path, settings: ReaderConfig) -> Iterator[Read]:
    """One document per line; a bad line is set aside alone, so the file is never read whole."""
    name = path.relative_to(root).as_posix()
    with explain_os_errors(path, "reading"), path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{name}:{number}"
            try:
                row = json.loads(line)
                text = row["text"]
                text.encode()  # JSON can spell half of a surrogate pair, which is no text
                yield Document(
                    text=text,
                    source=str(row.get("source") or _prose_class(text, settings)),
                    licence=str(row.get("licence", settings.licence)),
                    language=str(row.get("language", "en")),
                    meta={"name": where, "kind": "text", **row.get("meta", {}), "path": name},
                )
            except (ValueError, KeyError, TypeError, AttributeError) as e:
                yield Broken(where, "bad line", f"{type(e).__name__}: {e}")


def _prose_class(text: str, settings: ReaderConfig) -> str:
    return "acquired" if len(text) >= settings.acquired_chars else "web"


def _topics(path: Path, root: Path, settings: ReaderConfig, licence: str) -> Iterator[Document]:
    """The language reference, which `pydoc_data/topics.py` holds as one dictionary."""
    for node in ast.parse(_source(path, settings)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield Document(
                    text=text,
                    source=_prose_class(text, settings),
                    licence=licence,
                    meta={
                        "path": path.relative_to(root).as_posix(), "name": name, "kind": "topic",
                    },
                )  # fmt: skip


def _python_file(path: Path, root: Path, settings: ReaderConfig, licence: str) -> Iterator[Read]:
    def documents() -> Iterator[Document]:
        text = _source(path, settings)
        tree = ast.parse(text)
        where = path.relative_to(root)
        parts = [*where.with_suffix("").parts]
        module = ".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)
        file = _PythonFile(text, where.as_posix(), module, settings, licence)
        yield from file.prose(tree, module)
        yield from file.code(tree)

    return _guarded(path, root, documents)


class _PythonFile:
    """One parsed module: its docstrings as prose and its definitions as code."""

    def __init__(
        self, text: str, path: str, module: str, settings: ReaderConfig, licence: str
    ) -> None:
        self.text, self.path, self.module = text, path, module
        self.settings, self.licence = settings, licence
        # as the parser counts them: str.splitlines would also split at form feeds
        self.lines = [line + "\n" for line in text.split("\n")]

    def prose(self, node: ast.AST, name: str) -> Iterator[Document]:
        """The docstrings of a module and, depth first, of what it defines."""
        doc = ast.get_docstring(node) if isinstance(node, (ast.Module, *DEFINITION)) else None
        kind = _kind(node)
        if doc and (kind == "module" or len(doc) >= self.settings.docstring_chars):
            text = _encodable(f"{name}\n\n{doc}\n")
            source = _prose_class(text, self.settings)
            yield self._document(text, source, name, f"{kind} documentation")
        for child in getattr(node, "body", []):
            if isinstance(child, DEFINITION):
                yield from self.prose(child, f"{name}.{child.name}")

    def code(self, tree: ast.Module) -> Iterator[Document]:
        """The module whole, or its top-level definitions when it is long."""
        if len(self.text) <= self.settings.split_chars:
            doc = ast.get_docstring(tree) or ""
            yield self._document(self.text, "code", self.module, "module", doc)
            return
        for node in tree.body:
            if isinstance(node, DEFINITION):
                yield from self._definition(node, node.name, method=False)

    def _definition(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, name: str, method: bool
    ) -> Iterator[Document]:
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        text = "".join(self.lines[first - 1 : node.end_lineno])
        if isinstance(node, ast.ClassDef) and len(text) > self.settings.split_chars:
            for child in node.body:
                if isinstance(child, DEFINITION):
                    yield from self._definition(child, f"{name}.{child.name}", method=True)
            return
        kind = "method" if method and not isinstance(node, ast.ClassDef) else _kind(node)
        yield self._document(
            _dedent(text, node.col_offset), "code", name, kind, ast.get_docstring(node) or ""
        )

    def _document(
        self, text: str, source: str, name: str, kind: str, doc: str | None = None
    ) -> Document:
        meta = {"path": self.path, "name": name, "kind": kind}
        if doc is not None:
            meta |= {"doc": _encodable(inspect.cleandoc(doc)), "format": "python"}
        return Document(text=text, source=source, licence=self.licence, meta=meta)


def _encodable(text: str) -> str:
    """A string literal can escape half of a surrogate pair, which no file can hold."""
    return text.encode("utf-8", "replace").decode()


def _kind(node: ast.AST) -> str:
    if isinstance(node, ast.Module):
        return "module"
    return "class" if isinstance(node, ast.ClassDef) else "function"


def _dedent(text: str, columns: int) -> str:
    """Moves a nested definition to the left edge; lines that start before its column stay."""
    if not columns:
        return text
    lines = text.splitlines(keepends=True)
    return "".join(line[columns:] if not line[:columns].strip(" \t") else line for line in lines)
