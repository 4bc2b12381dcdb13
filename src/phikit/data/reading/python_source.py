"""Python source as documents: docstrings as prose, definitions as code."""

from __future__ import annotations

import ast
import inspect
import io
import tokenize
from collections.abc import Iterator

from phikit.data.reading.base import BrokenFile, File, Read, ReaderConfig, prose_class
from phikit.records import Document

DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read_python(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """A module's documentation, and its code whole or in parts.

    Raises:
        BrokenFile: it is no Python.
    """
    text, tree = _parsed(file, settings)
    parts = [*file.name.removesuffix(".py").split("/")]
    module = ".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)
    code = _PythonFile(text, file.name, module, settings, settings.licence)
    yield from code.prose(tree, module)
    yield from code.code(tree)


def read_topics(file: File, settings: ReaderConfig) -> Iterator[Read]:
    """The language reference, which `pydoc_data/topics.py` holds as one dictionary."""
    for node in _parsed(file, settings)[1].body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield Document(
                    text=text,
                    source=prose_class(text, settings),
                    licence=settings.licence,
                    meta={"path": file.name, "name": name, "kind": "topic"},
                )


def _parsed(file: File, settings: ReaderConfig) -> tuple[str, ast.Module]:
    """A Python file's text, in the encoding that it declares, and its syntax tree."""
    data = file.bytes(settings)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as e:
        raise BrokenFile("bad encoding", str(e)) from e
    text = io.TextIOWrapper(io.BytesIO(data), encoding).read()
    try:
        return text, ast.parse(text)
    except (SyntaxError, ValueError) as e:  # ValueError: null bytes
        raise BrokenFile("syntax error", str(e)) from e


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
            source = prose_class(text, self.settings)
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
